"""`labels.jsonl`: rows in the order of the input, each prompt's on disk as soon as it and those before it are done.

On a second run, rows that are good stay. If they are the beginning of the file, the run goes on behind them; if
something in the middle is to be done again, a new file is written beside the old one and takes its place at the
end, so that a killed run leaves the old rows as they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO

from judge_pipeline.calls.call import UNASKED
from judge_pipeline.common.errors import disk_error
from judge_pipeline.common.record_files import JsonlAppender, read_labels, to_json
from judge_pipeline.common.records import Label
from judge_pipeline.common.weighting import Weighting, weighted_reward
from judge_pipeline.labelling.summary import Tally

PASSING = UNASKED | {"http", "timeout"}
"""Failures that say nothing about the answer: its rows are done again by the next run."""


def _groups(path: Path) -> Iterator[tuple[str, list[Label]]]:
    for prompt_id, rows in groupby(read_labels(path), key=lambda row: row.prompt_id):
        yield prompt_id, list(rows)


class LabelFile:
    """Writes rows in order; knows which prompts an earlier run has finished.

    `prompts` maps the id of every prompt to its answers, in order: their ids, and a hash of what is judged. A row stays
    while that and the fingerprint of the `judge` are the row's; `retry_failed` keeps no row with a failure.
    """

    def __init__(
        self,
        path: Path,
        prompts: Mapping[str, Mapping[str, str]],
        judge: str,
        tally: Tally,
        weighting: Weighting,
        *,
        retry_failed: bool = False,
    ) -> None:
        self.path, self.prompts, self.judge = path, prompts, judge
        self.tally, self.weighting = tally, weighting
        self._retry_failed = retry_failed
        self.kept: set[str] = set()
        self.changed = False
        """Rows were written that an earlier run had not left as they are."""
        self.next_position = 0
        self._waiting: dict[int, list[Label] | str] = {}
        """Rows by position; for a prompt whose old rows stay, its id."""
        self._old: Iterator[tuple[str, list[Label]]] = iter(())
        self._appender: JsonlAppender | None = None
        self._new: IO[str] | None = None
        self._new_path = path.with_name(f".{path.name}.new")
        if path.is_file():
            JsonlAppender(path).close()  # cuts off what a killed run left of its last row
        there = path.is_file() and path.stat().st_size > 0
        goes_on = self._survey() if there else True
        if there:
            self._old = _groups(path)
        try:
            if goes_on:
                self._appender = JsonlAppender(path)
            else:
                self._new = self._new_path.open("w", encoding="utf-8")
        except OSError as error:
            raise disk_error(error, path) from error

    def _survey(self) -> bool:
        """Find the prompts whose rows stay; True when the old file can simply be gone on with."""
        groups = _groups(self.path)
        group = next(groups, None)
        goes_on = True
        for prompt, responses in self.prompts.items():
            if group is None:
                break
            if group[0] != prompt:
                goes_on = False
                continue  # its row may stand where another prompt of the input comes first now
            if self._keeps(group[1], responses):
                self.kept.add(prompt)
                goes_on = goes_on and all(self._renewed(row) is row for row in group[1])
            else:
                goes_on = False
            group = next(groups, None)
        return goes_on and group is None

    def _keeps(self, rows: Sequence[Label], responses: Mapping[str, str]) -> bool:
        """All answers have a row of this judge with the wanted dimensions, and none waits to be done (again)."""
        failures = [failure for row in rows for failure in row.failures]
        return (
            [(row.response_id, row.judged) for row in rows] == list(responses.items())
            and all(row.judge == self.judge for row in rows)
            and all(set(row.scores) == set(self.tally.names) for row in rows)
            and not [one for one in failures if self._retry_failed or one.reason in PASSING]
        )

    def _renewed(self, row: Label) -> Label:
        """The row with the reward that the present weights make of its scores: no call is needed for that."""
        reward = weighted_reward(row.scores, self.weighting.weights, self.weighting.missing)
        return row if reward == row.reward else row.model_copy(update={"reward": reward})

    @property
    def complete(self) -> bool:
        """All rows are there already."""
        return len(self.kept) == len(self.prompts)

    @property
    def answers(self) -> int:
        """Answers in all."""
        return sum(map(len, self.prompts.values()))

    @property
    def answers_kept(self) -> int:
        """Answers whose rows an earlier run has left."""
        return sum(len(self.prompts[prompt]) for prompt in self.kept)

    def keep_all(self) -> None:
        """Take over every row of an earlier run, when the file is `complete`."""
        for position, prompt in enumerate(self.prompts):
            self.put(position, prompt)
        self.finish()

    def put(self, position: int, rows: list[Label] | str) -> int:
        """Hand in a prompt's rows, or its id to take over those of an earlier run (see `kept`).

        Returns how many new answers were written because of it.
        """
        self._waiting[position] = rows
        written = 0
        while self.next_position in self._waiting:
            written += self._write(self._waiting.pop(self.next_position))
            self.next_position += 1
        return written

    def _stamped(self, row: Label) -> Label:
        judged = self.prompts[row.prompt_id][row.response_id]
        return row.model_copy(update={"judged": judged, "judge": self.judge})

    def _write(self, rows: list[Label] | str) -> int:
        old = isinstance(rows, str)
        self.changed = self.changed or not old or self._new is not None
        if isinstance(rows, str):
            wanted = rows
            found = next(group for prompt_id, group in self._old if prompt_id == wanted)
            rows = [self._renewed(row) for row in found]
        else:
            rows = [self._stamped(row) for row in rows]
        self.tally.add(rows)
        if self._new is not None:
            try:
                self._new.writelines(to_json(row) + "\n" for row in rows)
            except OSError as error:
                raise disk_error(error, self._new_path) from error
        elif self._appender is not None and not old:
            for row in rows:
                self._appender.append(row)
        return 0 if old else len(rows)

    def finish(self) -> None:
        """All rows are in: a file that was written anew takes the old one's place."""
        if self._new is None:
            return
        try:
            self._new.flush()
            os.fsync(self._new.fileno())
            os.replace(self._new_path, self.path)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def close(self) -> None:
        """Close the files; what was not finished stays as the earlier run left it."""
        if self._appender is not None:
            self._appender.close()
        if self._new is not None:
            self._new.close()
            self._new_path.unlink(missing_ok=True)
