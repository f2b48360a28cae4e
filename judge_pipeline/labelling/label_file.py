"""`labels.jsonl`: rows in the order of the input, each prompt's on disk as soon as it and those before it are done.

On a second run, rows that are good stay. If they are the beginning of the file, the run goes on behind them; if
something in the middle is to be done again, a new file is written beside the old one and takes its place at the
end, so that a killed run leaves the old rows as they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO

from judge_pipeline.common.errors import disk_error
from judge_pipeline.common.record_files import JsonlAppender, read_labels, to_json
from judge_pipeline.common.records import Label, Prompt
from judge_pipeline.common.weighting import Weighting, weighted_reward
from judge_pipeline.labelling.summary import Tally


@dataclass(frozen=True)
class KeepRule:
    """Which rows of an earlier run stay."""

    names: Sequence[str]
    weighting: Weighting
    retry_failed: bool = False

    def keeps(self, rows: Sequence[Label], response_ids: Sequence[str]) -> bool:
        """All answers have a row with the wanted dimensions, and none waits to be done (again)."""
        if [row.response_id for row in rows] != list(response_ids):
            return False
        for row in rows:
            if set(row.scores) != set(self.names):
                return False
            if self.retry_failed and row.failures:
                return False
            if any(failure.reason == "stopped" for failure in row.failures):
                return False
        return True

    def renewed(self, row: Label) -> Label:
        """The row with the reward that the present weights make of its scores: no call is needed for that."""
        reward = weighted_reward(row.scores, self.weighting.weights, self.weighting.missing)
        return row if reward == row.reward else row.model_copy(update={"reward": reward})


@dataclass(frozen=True)
class PromptKey:
    """A prompt as far as its rows are concerned."""

    id: str
    response_ids: tuple[str, ...]

    @classmethod
    def of(cls, prompt: Prompt) -> PromptKey:
        """The key of a prompt."""
        return cls(prompt.id, tuple(response.id for response in prompt.responses))


def _groups(path: Path) -> Iterator[tuple[str, list[Label]]]:
    for prompt_id, rows in groupby(read_labels(path), key=lambda row: row.prompt_id):
        yield prompt_id, list(rows)


class LabelFile:
    """Writes rows in order; knows which prompts an earlier run has finished."""

    def __init__(self, path: Path, rule: KeepRule, prompts: Sequence[PromptKey], tally: Tally) -> None:
        self.path, self.rule, self.prompts, self.tally = path, rule, prompts, tally
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
        for prompt in self.prompts:
            if group is None:
                break
            if group[0] != prompt.id:
                goes_on = False
                continue  # its row may stand where another prompt of the input comes first now
            if self.rule.keeps(group[1], prompt.response_ids):
                self.kept.add(prompt.id)
                goes_on = goes_on and all(self.rule.renewed(row) is row for row in group[1])
            else:
                goes_on = False
            group = next(groups, None)
        return goes_on and group is None

    @property
    def complete(self) -> bool:
        """All rows are there already."""
        return len(self.kept) == len(self.prompts)

    @property
    def answers(self) -> int:
        """Answers in all."""
        return sum(len(prompt.response_ids) for prompt in self.prompts)

    @property
    def answers_kept(self) -> int:
        """Answers whose rows an earlier run has left."""
        return sum(len(prompt.response_ids) for prompt in self.prompts if prompt.id in self.kept)

    def keep_all(self) -> None:
        """Take over every row of an earlier run, when the file is `complete`."""
        for position, prompt in enumerate(self.prompts):
            self.put(position, prompt.id)
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

    def _write(self, rows: list[Label] | str) -> int:
        old = isinstance(rows, str)
        self.changed = self.changed or not old or self._new is not None
        if isinstance(rows, str):
            wanted = rows
            found = next(group for prompt_id, group in self._old if prompt_id == wanted)
            rows = [self.rule.renewed(row) for row in found]
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
