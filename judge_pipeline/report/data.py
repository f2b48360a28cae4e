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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from judge_pipeline.common.errors import DataError
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.common.records import DIMENSIONS, Label, Prompt, Scores, Usage

PAGE_ANSWERS = 200
"""Answers on one page: with no more than these, the report is one file."""
PAGE_CHARACTERS = 8_000_000
"""Documents and answers on one page, in characters, so that a page opens quickly whatever the documents' length."""
SNIPPET = 180
UNLABELLED = "not labelled"


@dataclass(frozen=True)
class Verdict:
    """A label with its evidence compressed: ten thousand of them are a few tens of megabytes."""

    scores: Scores
    reward: float | None
    status: str
    failures: tuple[tuple[str, str, str], ...]
    usage: Usage
    packed: bytes

    def evidence(self) -> dict[str, Any]:
        """The evidence as the judge left it."""
        unpacked: dict[str, Any] = json.loads(zlib.decompress(self.packed))
        return unpacked


@dataclass(frozen=True)
class Subject:
    """A prompt as the report shows it; ``context`` and ``query`` are None where the prompts file has no such prompt."""

    id: str
    query: str | None
    context: str | None
    answers: list[tuple[str, str | None, str | None]]
    """``(response id, text, source)``"""


@dataclass
class Labels:
    """All labels of a run, by prompt and response, in the file's order."""

    verdicts: dict[str, dict[str, Verdict]]
    torn: bool
    """The file ends in the middle of a row: the run was stopped there, or goes on right now."""

    @cached_property
    def dimensions(self) -> list[str]:
        """The paper's four in their order, then others in the order they first appear."""
        seen = dict.fromkeys(name for verdict in self.all() for name in verdict.scores)
        return [name for name in DIMENSIONS if name in seen] + [
            name for name in seen if name not in DIMENSIONS
        ]

    def all(self) -> Iterator[Verdict]:
        """Every verdict."""
        for answers in self.verdicts.values():
            yield from answers.values()

    def values(self, dimension: str) -> list[float]:
        """The scores of one dimension where there are any; ``reward`` names the reward."""
        read = _reader(dimension)
        return [value for verdict in self.all() if (value := read(verdict)) is not None]

    def tied_share(self, dimension: str) -> float | None:
        """Share of pairs of answers to the same prompt with equal scores; None without a pair."""
        read = _reader(dimension)
        tied = total = 0
        for answers in self.verdicts.values():
            values = [value for verdict in answers.values() if (value := read(verdict)) is not None]
            for one, other in combinations(values, 2):
                total += 1
                tied += abs(one - other) < 1e-9
        return tied / total if total else None

    def failures(self) -> dict[str, Counter[str]]:
        """Dimension → reason → how often."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for verdict in self.all():
            for dimension, reason, _ in verdict.failures:
                found[dimension][reason] += 1
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
    torn = path.is_file() and _ends_torn(path)
    verdicts: dict[str, dict[str, Verdict]] = {}
    try:
        for label in read_labels(path):
            verdicts.setdefault(label.prompt_id, {})[label.response_id] = _pack(label)
    except DataError as error:
        if not torn or error.line != _line_count(path):
            raise
    return Labels(verdicts, torn)


def subjects(prompts: Iterable[Prompt], labels: Labels) -> Iterator[Subject]:
    """The prompts in their file's order, then those that only the labels know."""
    seen = set()
    for prompt in prompts:
        seen.add(prompt.id)
        answers: list[tuple[str, str | None, str | None]] = [
            (response.id, response.text, response.source) for response in prompt.responses
        ]
        known = {response.id for response in prompt.responses}
        answers += [(name, None, None) for name in labels.verdicts.get(prompt.id, {}) if name not in known]
        yield Subject(prompt.id, prompt.query, prompt.context, answers)
    for name, verdicts in labels.verdicts.items():
        if name not in seen:
            yield Subject(name, None, None, [(response, None, None) for response in verdicts])


def pages(found: Iterable[Subject], labels: Labels) -> Iterator[Page]:
    """Cut the run into pages of whole prompts. Prompt numbers in rows and details are local to the page."""
    dimensions = labels.dimensions
    page = Page(first=1)
    for subject in found:
        size = len(subject.context or "") + sum(len(text or "") for _, text, _ in subject.answers)
        full = (
            len(page.rows) + len(subject.answers) > PAGE_ANSWERS or page.characters + size > PAGE_CHARACTERS
        )
        if page.rows and full:
            yield page
            page = Page(first=page.first + len(page.rows))
        _add(page, subject, labels.verdicts.get(subject.id, {}), dimensions, size)
    yield page


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


def _add(
    page: Page, subject: Subject, verdicts: dict[str, Verdict], dimensions: list[str], size: int
) -> None:
    number = len(page.prompts)
    page.characters += size
    page.prompts.append([subject.id, _snippet(subject.query)])
    page.documents.append({"query": subject.query, "context": subject.context})
    convert = utf16_offset(subject.context or "")
    for name, text, source in subject.answers:
        verdict = verdicts.get(name)
        scores = [verdict.scores.get(dimension) if verdict else None for dimension in dimensions]
        page.rows.append(
            [
                number,
                name,
                _snippet(text),
                [None if score is None else round(score, 3) for score in scores],
                None if verdict is None or verdict.reward is None else round(verdict.reward, 3),
                verdict.status if verdict else UNLABELLED,
                sorted({reason for _, reason, _ in verdict.failures}) if verdict else [],
            ]
        )
        page.details.append(
            {
                "text": text,
                "source": source,
                "failures": [[*failure] for failure in verdict.failures] if verdict else [],
                "evidence": convert_offsets(verdict.evidence(), convert) if verdict else {},
                "usage": verdict.usage.model_dump() if verdict else None,
            }
        )


def _pack(label: Label) -> Verdict:
    packed = zlib.compress(json.dumps(label.evidence).encode(), level=3)
    failures = tuple((failure.dimension, failure.reason, failure.detail) for failure in label.failures)
    return Verdict(label.scores, label.reward, label.status, failures, label.usage, packed)


def _reader(dimension: str) -> Callable[[Verdict], float | None]:
    return lambda verdict: verdict.reward if dimension == "reward" else verdict.scores.get(dimension)


def _snippet(text: str | None) -> str | None:
    if text is None:
        return None
    line = " ".join(text[: 4 * SNIPPET].split())
    return line if len(line) <= SNIPPET else line[: SNIPPET - 1] + "…"


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return size > 0 and file.read(1) != b"\n"


def _line_count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
