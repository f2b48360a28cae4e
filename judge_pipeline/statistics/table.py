"""Answers laid out for statistics: which answer belongs to which prompt, document and group.

In: prompts with answers. Out: an `AnswerTable`, whose rows are all answers in reading order; every score that is
compared is one float array over those rows, NaN where there is none.

Shape suffixes: R answers (rows), P prompts, D documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from judge_pipeline.common.records import Label, Prompt, Scores

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REWARD = "reward"
OVERALL = "overall"
"""People's judgement of the whole answer; what a reward is compared with."""


@dataclass(frozen=True)
class Pair:
    """People preferred row `winner` to row `loser` of prompt number `prompt`."""

    prompt: int
    winner: int
    loser: int


@dataclass
class AnswerTable:
    """All answers of a set of prompts, flattened in order."""

    prompts: list[Prompt]
    start_P: Ints
    """First row of each prompt."""
    end_P: Ints
    """One past the last row of each prompt."""
    document_P: Ints
    """Number of the document each prompt is about, 0 … D-1."""
    length_P: Floats
    """Length of each prompt's document, in `length_unit`s."""
    group_P: list[str]
    """Data set or task of each prompt."""
    length_unit: str = "characters"
    row_of: dict[tuple[str, str], int] = field(default_factory=dict)
    """(prompt id, response id) → row."""

    @property
    def rows(self) -> int:
        """R, the number of answers."""
        return len(self.row_of)

    @property
    def documents(self) -> int:
        """D, the number of distinct documents."""
        return len(set(self.document_P.tolist()))

    @property
    def prompt_R(self) -> Ints:
        """Number of the prompt of each answer."""
        return np.repeat(np.arange(len(self.prompts)), self.end_P - self.start_P)

    @property
    def document_R(self) -> Ints:
        """Number of the document of each answer."""
        return self.document_P[self.prompt_R]

    def centred(self, values: Floats) -> Floats:
        """Values of the answers (R, …) minus their prompt's mean over the known ones."""
        found = np.array(values, dtype=float)
        for _, rows in self.slices():
            known = np.isfinite(found[rows])
            count = known.sum(axis=0)
            total = np.where(known, found[rows], 0.0).sum(axis=0)
            found[rows] -= np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return found

    def slices(self) -> Iterable[tuple[int, slice]]:
        """(prompt number, its rows) for every prompt."""
        for number, (start, end) in enumerate(zip(self.start_P, self.end_P, strict=True)):
            yield number, slice(int(start), int(end))

    def texts(self) -> list[str]:
        """The text of every answer."""
        return [response.text for prompt in self.prompts for response in prompt.responses]

    def preferences(self) -> list[Pair]:
        """People's choices between two answers, as rows."""
        return [
            Pair(number, self.row_of[prompt.id, choice.winner], self.row_of[prompt.id, choice.loser])
            for number, prompt in enumerate(self.prompts)
            for choice in prompt.preferences
        ]

    def from_responses(self, read: Callable[[Prompt, int], float | None]) -> Floats:
        """One value an answer: `read(prompt, position of the answer)`, NaN for None."""
        values = [
            read(prompt, position) for prompt in self.prompts for position in range(len(prompt.responses))
        ]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    def from_labels(self, labels: Mapping[tuple[str, str], Label], name: str) -> Floats:
        """Column `name` (a dimension, or "reward") of judge labels; NaN where there is no label or no score."""
        column = np.full(self.rows, np.nan)
        for key, row in self.row_of.items():
            label = labels.get(key)
            value = None if label is None else label.reward if name == REWARD else label.scores.get(name)
            if value is not None:
                column[row] = value
        return column


def build_table(
    prompts: Sequence[Prompt],
    group: Callable[[Prompt], str] = lambda prompt: "",
    length: Callable[[Prompt], float] = lambda prompt: len(prompt.context),
    length_unit: str = "characters",
) -> AnswerTable:
    """Lay out the answers of `prompts`, which must have distinct ids."""
    counts = [len(prompt.responses) for prompt in prompts]
    ends = np.cumsum(counts, dtype=np.int64) if counts else np.zeros(0, dtype=np.int64)
    numbers: dict[str, int] = {}
    rows: dict[tuple[str, str], int] = {}
    for prompt in prompts:
        numbers.setdefault(prompt.document_id, len(numbers))
        for response in prompt.responses:
            rows[prompt.id, response.id] = len(rows)
    if len(rows) != sum(counts):
        raise ValueError("two prompts share an id: rows could not be told apart")
    return AnswerTable(
        prompts=list(prompts),
        start_P=ends - np.array(counts, dtype=np.int64),
        end_P=ends,
        document_P=np.array([numbers[prompt.document_id] for prompt in prompts], dtype=np.int64),
        length_P=np.array([length(prompt) for prompt in prompts], dtype=float),
        group_P=[group(prompt) for prompt in prompts],
        length_unit=length_unit,
        row_of=rows,
    )


def score_columns(table: AnswerTable, names: Sequence[str], read: str = "scores") -> dict[str, Floats]:
    """Columns of the answers' own `scores` (or `human`) field, those with at least one value.

    With `read="scores"` the answers' `reward` is a column as well.
    """
    columns = {name: table.from_responses(_reader(read, name)) for name in names}
    if read == "scores":
        columns[REWARD] = table.from_responses(lambda prompt, position: prompt.responses[position].reward)
    return {name: column for name, column in columns.items() if np.isfinite(column).any()}


def _reader(read: str, name: str) -> Callable[[Prompt, int], float | None]:
    def value(prompt: Prompt, position: int) -> float | None:
        scores: Scores | None = getattr(prompt.responses[position], read)
        return (scores or {}).get(name)

    return value


def score_names(table: AnswerTable, read: str) -> list[str]:
    """Names that occur in the answers' `scores` or `human`, in order of first appearance."""
    names: dict[str, None] = {}
    for prompt in table.prompts:
        for response in prompt.responses:
            names.update(dict.fromkeys(getattr(response, read) or {}))
    return list(names)
