"""What `explain.py` measures: sentences of answers with what judge or people say of them, and where the truth lies.

In: prompts, labels with evidence, StorySumm. Out: a `Case` a prompt. No model is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from judge_pipeline.common.record_files import read_labels, read_prompts
from judge_pipeline.common.records import Label, Prompt, Response
from judge_pipeline.documents.chunking import Span as TextSpan
from judge_pipeline.documents.chunking import cut
from reward_model.data.evidence import Sentence, align, load_evidence, sentence_targets
from reward_model.data.splits import hash_fraction
from reward_model.scoring.explain import SEGMENT

Places = Callable[[str, str], Sequence[tuple[int, int]]]
"""(document, question) → characters of the document that each token of the prefix stands for."""
NAMED = re.compile(r"(?:\bP|[Pp]assages? )(\d+)")
"""How the judge names the passage it relies on; passages are numbered in the document's order."""
PASSAGES = 5
"""Passages a verdict saw: in a document of no more than these, the number is that of the segment."""


@dataclass(frozen=True)
class Case:
    """A prompt with the sentences of its answers, and the parts of its document."""

    prompt: Prompt
    sentences: list[list[Sentence]]
    """Of each answer; support is the truth, None where nothing is known."""
    segments: list[TextSpan]
    named: list[list[set[int]]]
    """For each sentence the segments that the judge named for it."""
    sources: list[list[set[int]]]
    """For each sentence the segments that hold a key point it covers."""

    def flat(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """What stands for each sentence, over all answers."""
        return [one for row in rows for one in row]


def judged_cases(labels_file: Path, prompts_file: Path, limit: int | None, places: Places) -> list[Case]:
    """Prompts that the judge labelled, with what its evidence says of their sentences."""
    evidence = load_evidence(labels_file)
    labels = {(row.prompt_id, row.response_id): row for row in read_labels(labels_file)}
    known = {key[0] for key in labels}
    prompts = [prompt for prompt in read_prompts(prompts_file) if prompt.id in known]
    prompts = sorted(prompts, key=lambda prompt: hash_fraction(prompt.id, 0))[:limit]
    cases = []
    for prompt in prompts:
        segments = _segments(
            prompt, [labels[prompt.id, r.id] for r in prompt.responses if (prompt.id, r.id) in labels], places
        )
        sentences, named, sources = [], [], []
        for response in prompt.responses:
            label, own = labels.get((prompt.id, response.id)), evidence.get((prompt.id, response.id))
            told = sentence_targets(response.text, own.statements if own else ())
            sentences.append(told)
            points = [one for one in (own.key_points if own else ()) if one.covered and one.span]
            found: list[set[int]] = [set() for _ in told]
            for point, rows in zip(
                points, align(response.text, told, [one.text for one in points]), strict=True
            ):
                middle = sum(point.span or ()) / 2
                inside = [number for number, one in enumerate(segments) if one.start <= middle < one.end]
                for row in rows:
                    found[row].update(inside)
            sources.append(found)
            named.append(_named(response, label, told, len(segments)))
        cases.append(Case(prompt, sentences, segments, named, sources))
    return cases


def _segments(prompt: Prompt, labels: Sequence[Label], places: Places) -> list[TextSpan]:
    """The judge's own segments where its evidence names all of them, else those that `--explain` makes."""
    seen = {
        (span["start"], span["end"])
        for label in labels
        for row in (label.evidence.get("faithfulness") or {}).get("statements") or []
        for span in row["spans"]
    }
    spans = sorted(seen)
    joined = all(a[1] == b[0] for a, b in pairwise(spans))
    if spans and joined and spans[0][0] == 0 and spans[-1][1] == len(prompt.context):
        return [TextSpan(*span) for span in spans]
    return cut(prompt.context, [p for p in places(prompt.context, prompt.query) if p[1] >= 0], SEGMENT)


def _named(
    response: Response, label: Label | None, told: Sequence[Sentence], segments: int
) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in told]
    rows = ((label.evidence.get("faithfulness") or {}).get("statements") or []) if label else []
    for row, places in zip(rows, align(response.text, told, [row["text"] for row in rows]), strict=True):
        numbers = {int(text) for text in NAMED.findall(row["analysis"] or "")}
        clear = row["verdict"] == "full" and len(numbers) == 1 and len(row["spans"]) == segments <= PASSAGES
        if clear and max(numbers) <= segments:
            for place in places:
                found[place].update(number - 1 for number in numbers)
    return found


def story_cases(path: Path, places: Places) -> list[Case]:
    """Summaries whose sentences people called faithful or not."""
    cases = []
    for prompt in read_prompts(path):
        sentences = []
        for response in prompt.responses:
            extra, at, told = response.model_extra or {}, 0, []
            labels = extra["sentence_labels"]
            if len(labels) != len(extra["sentences"]):  # which sentence a label belongs to is not known
                labels = [None] * len(extra["sentences"])
            for text, label in zip(extra["sentences"], labels, strict=True):
                start = response.text.index(text.strip(), at)
                at = start + len(text.strip())
                told.append(Sentence(start, at, None if label is None else float(label)))
            sentences.append(told)
        empty: list[list[set[int]]] = [[set() for _ in told] for told in sentences]
        cases.append(Case(prompt, sentences, _segments(prompt, [], places), empty, empty))
    return cases
