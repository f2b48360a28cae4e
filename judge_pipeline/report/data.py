"""What a label run's report shows, read as streams and made compact: labels in memory packed, documents page by page.

In: ``labels.jsonl`` and the prompts it labels. Out: `Labels` (all rows, evidence compressed) and `Page`s: answers of
whole prompts, each document once, as plain JSON values for the script of the page.

Offsets: evidence counts characters as Python does (code points), a browser counts UTF-16 units. They differ after
every character beyond U+FFFF, so offsets are converted here, where both are known.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from judge_pipeline.common.errors import DataError
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.common.records import DIMENSIONS, Failure, Label, Prompt, Scores, Usage

PAGE_ANSWERS = 200
"""Answers on one page: with no more than these, the report is one file."""
PAGE_CHARACTERS = 8_000_000
"""Documents and answers on one page, in characters, so that a page opens quickly whatever the documents' length."""
SNIPPET = 180
UNLABELLED = "not labelled"
PENDING = "pending"
"""Reason of a score that has not failed: its calls are in batch files; shown as the answer's status."""
Answers = dict[str, tuple[str | None, str | None]]
"""Response id to text and source; None where only the labels know of it."""


@dataclass(frozen=True)
class PackedLabel:
    """A label with its evidence compressed: ten thousand of them are a few tens of megabytes."""

    scores: Scores
    reward: float | None
    status: str
    failures: list[Failure]
    usage: Usage
    packed: bytes

    @classmethod
    def of(cls, label: Label) -> PackedLabel:
        """Pack a label."""
        packed = zlib.compress(json.dumps(label.evidence).encode(), level=3)
        status = PENDING if any(one.reason == PENDING for one in label.failures) else label.status
        return cls(label.scores, label.reward, status, label.failures, label.usage, packed)

    def evidence(self) -> dict[str, Any]:
        """The evidence as the judge left it."""
        unpacked: dict[str, Any] = json.loads(zlib.decompress(self.packed))
        return unpacked

    def points(self, name: str) -> float | None:
        """The score of a dimension; ``reward`` names the reward."""
        return self.reward if name == "reward" else self.scores.get(name)


@dataclass
class Labels:
    """All labels of a run, by prompt and response, in the file's order."""

    by_prompt: dict[str, dict[str, PackedLabel]]
    torn: bool
    """The file ends in the middle of a row: the run was stopped there, or goes on right now."""

    @cached_property
    def dimensions(self) -> list[str]:
        """The paper's four in their order, then others in the order they first appear."""
        seen = dict.fromkeys(name for label in self.all() for name in label.scores)
        return [name for name in dict.fromkeys([*DIMENSIONS, *seen]) if name in seen]

    @property
    def count(self) -> int:
        """How many labels there are."""
        return sum(map(len, self.by_prompt.values()))

    def all(self) -> Iterator[PackedLabel]:
        """Every label."""
        return chain.from_iterable(answers.values() for answers in self.by_prompt.values())

    def values(self, name: str) -> list[float]:
        """The scores of one dimension where there are any; ``reward`` names the reward."""
        return [value for label in self.all() if (value := label.points(name)) is not None]

    def tied_share(self, name: str) -> float | None:
        """Share of pairs of answers to the same prompt with equal scores; None without a pair."""
        ties = [
            abs(one - other) < 1e-9
            for answers in self.by_prompt.values()
            for one, other in combinations((label.points(name) for label in answers.values()), 2)
            if one is not None and other is not None
        ]
        return sum(ties) / len(ties) if ties else None

    def failures(self) -> dict[str, Counter[str]]:
        """Dimension → reason → how often."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for failure in chain.from_iterable(label.failures for label in self.all()):
            if failure.reason != PENDING:
                found[failure.dimension][failure.reason] += 1
        return dict(found)


@dataclass
class Page:
    """Answers of some whole prompts: rows for the table and details for the viewer."""

    first: int
    """Number of the first answer, from 1 over the whole run."""
    prompts: list[list[Any]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    characters: int = 0


def load_labels(path: Path) -> Labels:
    """Read ``labels.jsonl``; a torn last line (a run that was killed, or is running) is left out and noted."""
    torn = _torn_line(path) if path.is_file() else None
    found: dict[str, dict[str, PackedLabel]] = {}
    try:
        for label in read_labels(path):
            found.setdefault(label.prompt_id, {})[label.response_id] = PackedLabel.of(label)
    except DataError as error:
        if torn is None or error.line != torn:
            raise
    return Labels(found, torn is not None)


def pages(prompts: Iterable[Prompt], labels: Labels) -> Iterator[Page]:
    """Cut the run into pages of whole prompts: the file's in its order, then those that only the labels know.

    Prompt numbers in rows and details are local to the page.
    """
    page = Page(first=1)
    for name, prompt, found in _shown(prompts, labels):
        answers: Answers = {item.id: (item.text, item.source) for item in prompt.responses} if prompt else {}
        answers |= {response: (None, None) for response in found if response not in answers}
        size = sum(len(text or "") for text, _ in answers.values()) + (len(prompt.context) if prompt else 0)
        full = len(page.rows) + len(answers) > PAGE_ANSWERS or page.characters + size > PAGE_CHARACTERS
        if page.rows and full:
            yield page
            page = Page(first=page.first + len(page.rows))
        page.characters += size
        query, context = (prompt.question, prompt.context) if prompt else (None, None)
        page.prompts.append([name, _snippet(query)])
        page.documents.append({"query": query, "context": context})
        _add_answers(page, answers, found, labels.dimensions, utf16_offset(context or ""))
    yield page


def _shown(
    prompts: Iterable[Prompt], labels: Labels
) -> Iterator[tuple[str, Prompt | None, dict[str, PackedLabel]]]:
    unseen = dict(labels.by_prompt)
    for prompt in prompts:
        yield prompt.id, prompt, unseen.pop(prompt.id, {})
    for name, found in unseen.items():
        yield name, None, found


def utf16_offset(text: str) -> Callable[[int], int]:
    """A function from code point offsets into ``text`` to UTF-16 offsets; offsets outside are moved to the ends."""
    wide = [] if text.isascii() else [index for index, sign in enumerate(text) if ord(sign) > 0xFFFF]
    length = len(text)

    def convert(offset: int) -> int:
        inside = min(max(offset, 0), length)
        return inside + bisect_left(wide, inside)

    return convert


def convert_offsets(value: Any, convert: Callable[[int], int]) -> Any:
    """A copy of evidence in which every ``start`` and ``end`` is converted, however deep."""
    if isinstance(value, list):
        return [convert_offsets(item, convert) for item in value]
    if isinstance(value, dict):
        return {
            key: convert(item)
            if key in ("start", "end") and isinstance(item, int) and not isinstance(item, bool)
            else convert_offsets(item, convert)
            for key, item in value.items()
        }
    return value


def _add_answers(
    page: Page,
    answers: Answers,
    labels: dict[str, PackedLabel],
    dimensions: list[str],
    convert: Callable[[int], int],
) -> None:
    """Rows and details of the answers to the page's last prompt."""
    for name, (text, source) in answers.items():
        row: list[Any] = [[None] * len(dimensions), None, UNLABELLED, []]
        detail: dict[str, Any] = {"failures": [], "evidence": {}, "usage": None}
        if (label := labels.get(name)) is not None:
            points = [_rounded(label.scores.get(dimension)) for dimension in dimensions]
            reasons = sorted({failure.reason for failure in label.failures})
            row = [points, _rounded(label.reward), label.status, reasons]
            detail = {
                "failures": [[one.dimension, one.reason, one.detail] for one in label.failures],
                "evidence": convert_offsets(label.evidence(), convert),
                "usage": label.usage.model_dump(),
            }
        page.rows.append([len(page.prompts) - 1, name, _snippet(text), *row])
        page.details.append({"text": text, "source": source, **detail})


def _rounded(points: float | None) -> float | None:
    return None if points is None else round(points, 3)


def _snippet(text: str | None) -> str | None:
    if text is None:
        return None
    line = " ".join(text[: 4 * SNIPPET].split())
    return line if len(line) <= SNIPPET else line[: SNIPPET - 1] + "…"


def _torn_line(path: Path) -> int | None:
    """The number of the last line, when it has no line end."""
    with path.open("rb") as file:
        last = deque(enumerate(file, start=1), maxlen=1)
    return last[0][0] if last and not last[0][1].endswith(b"\n") else None
