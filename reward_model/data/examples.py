"""From records to training examples: labels or human scores become arrays of targets with NaN where there is none.

In: a label run (`labels.jsonl` and the prompts it was made from), or a prompts file that carries `human` scores
or `preferences`. Out: one `Example` a prompt, and the dimensions in the order of the model's outputs.

What cannot be learned is refused with the reason (a dimension that always has the same score, a label that
belongs to no prompt); what is merely missing is masked, never filled in.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import read_labels, read_prompts, read_rows
from judge_pipeline.common.records import DIMENSIONS, Label, Prompt, Response, Scores
from judge_pipeline.common.run_dir import read_run_yaml
from reward_model.options import Targets

Floats = NDArray[np.float32]

PREFERENCE_DIMENSION = "overall"
"""The one output of a model that is trained on people's choices alone: no dimension can be told apart in them."""


@dataclass(frozen=True)
class Contrast:
    """Two answers of which one was made worse, or the same answer beside two documents."""

    better: tuple[str, int]
    """Prompt id and place among that example's answers."""
    worse: tuple[str, int]
    gaps_D: Floats
    """By dimension: how much worse, in strengths 1–3; 0 where both are as good; NaN where nothing is known."""


@dataclass(frozen=True)
class Example:
    """A prompt with its answers and what is known about them; N answers, D dimensions."""

    prompt_id: str
    document_id: str
    context: str
    query: str
    response_ids: tuple[str, ...]
    responses: tuple[str, ...]
    targets_N_D: Floats
    """Points 0–10; NaN where there is no score."""
    confidence_N_D: Floats
    """Weight of each target in the regression, 1 unless the judge's votes disagreed."""
    preferences: tuple[tuple[int, int], ...] = ()
    """People's choices: (winner, loser) by place in `responses`."""
    contrasts: tuple[Contrast, ...] = ()
    """What is known of answers that were changed on purpose; each stands with the example of its worse answer."""
    changed_document: bool = False
    """Whether the text is another than that of `document_id`, which it belongs to all the same."""


def unlabelled_example(prompt: Prompt, answers: Sequence[Response], dimensions: int) -> Example:
    """Some of a prompt's answers, about which nothing is known."""
    nothing = np.full((len(answers), dimensions), np.nan, np.float32)
    ids, texts = tuple(item.id for item in answers), tuple(item.text for item in answers)
    about = (prompt.id, prompt.document_id, prompt.context, prompt.question)
    return Example(*about, ids, texts, nothing, np.ones_like(nothing))


@dataclass(frozen=True)
class Examples:
    """What a file holds: examples, the dimensions of their targets, and the files they came from."""

    items: tuple[Example, ...]
    dimensions: tuple[str, ...]
    sources: tuple[Path, ...]


def load_examples(
    path: Path,
    *,
    prompts: Path | None = None,
    targets: Targets = "auto",
    dimensions: Sequence[str] | None = None,
) -> Examples:
    """Read a label run directory, a `labels.jsonl`, or a prompts file with human scores or preferences.

    `targets="auto"` takes the judge's scores from labels and people's scores from prompts. `dimensions` picks
    and orders the outputs; by default the four, then any others in the order the records show them.

    Raises:
        UserError, DataError: the file cannot be used; the message says why and what to do.
    """
    labels_file = path / "labels.jsonl" if path.is_dir() else path
    if holds_labels(labels_file):
        if targets not in ("auto", "judge"):
            raise UserError(
                f"{labels_file} holds the judge's labels, which have no {targets}",
                "name the prompts file that carries them instead",
            )
        prompts_file = prompts or _prompts_of_run(labels_file)
        items, found = _from_labels(labels_file, prompts_file, dimensions)
        return Examples(items, found, (labels_file, prompts_file))
    if targets == "judge":
        raise UserError(
            f"{labels_file} holds prompts, not the judge's labels",
            "name the directory `judge-pipeline label` wrote, or choose --targets human or preferences",
        )
    items, found = _from_prompts(labels_file, "human" if targets == "auto" else targets, dimensions)
    return Examples(items, found, (labels_file,))


def holds_labels(path: Path) -> bool:
    """Whether a file's records are the judge's labels; otherwise they are prompts."""
    first = next(itertools.islice(read_rows(path), 1), None)
    if first is None:
        raise DataError("holds no records", path=path)
    return "prompt_id" in first[1]


def _prompts_of_run(labels_file: Path) -> Path:
    """The prompts a label run was made from, as its run.yaml says."""
    run_file = labels_file.parent / "run.yaml"
    if not run_file.is_file():
        raise UserError(
            f"labels need the prompts they belong to, and {run_file} is not there to name them",
            "give --prompts FILE",
        )
    named = (read_run_yaml(run_file).get("config") or {}).get("prompts")
    if not isinstance(named, str):
        raise UserError(f"{run_file} names no prompts file", "give --prompts FILE")
    if not Path(named).is_file():
        raise UserError(f"the prompts file {named}, named by {run_file}, is not there", "give --prompts FILE")
    return Path(named)


def _ordered(found: Iterable[str], wanted: Sequence[str] | None, where: Path) -> tuple[str, ...]:
    """The dimensions to learn: those asked for, or the four first and then others as they came."""
    seen = dict.fromkeys(found)
    if wanted is None:
        return tuple(name for name in DIMENSIONS if name in seen) + tuple(
            name for name in seen if name not in DIMENSIONS
        )
    for name in wanted:
        if name not in seen:
            raise UserError(f"{where} has no scores for '{name}'", f"it has: {', '.join(seen) or 'none'}")
    return tuple(wanted)


def _row(scores: Scores | None, dimensions: Sequence[str]) -> list[float]:
    values = [(scores or {}).get(name) for name in dimensions]
    return [math.nan if value is None else value for value in values]


def _confidence(label: Label, dimensions: Sequence[str]) -> list[float]:
    """1/(1 + s²) for a spread of s points between the judge's votes on a dimension: the inverse variance of a
    score that is uncertain by one point to begin with."""
    weights = []
    for name in dimensions:
        evidence = label.evidence.get(name)
        spread = evidence.get("spread") if isinstance(evidence, dict) else None
        weights.append(1.0 / (1.0 + float(spread) ** 2) if isinstance(spread, (int, float)) else 1.0)
    return weights


def _from_labels(
    labels_file: Path, prompts_file: Path, wanted: Sequence[str] | None
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    by_prompt: dict[str, dict[str, Label]] = defaultdict(dict)
    found: dict[str, None] = {}
    for label in read_labels(labels_file):
        by_prompt[label.prompt_id][label.response_id] = label
        found.update(dict.fromkeys(label.scores))
    dimensions = _ordered(found, wanted, labels_file)
    items = []
    for prompt in read_prompts(prompts_file):
        labels = by_prompt.pop(prompt.id, None)
        if labels:
            items.append(_labelled(prompt, labels, dimensions, labels_file))
    if by_prompt:
        name = next(iter(by_prompt))
        raise DataError(
            f"labels prompt '{name}' (and {len(by_prompt) - 1} more), which {prompts_file} does not hold",
            path=labels_file,
            field="prompt_id",
            hint="give the prompts file the labels were made from: --prompts FILE",
        )
    return tuple(item for item in items if item.responses), dimensions


def _labelled(
    prompt: Prompt, labels: dict[str, Label], dimensions: Sequence[str], labels_file: Path
) -> Example:
    unknown = set(labels) - {response.id for response in prompt.responses}
    if unknown:
        raise DataError(
            f"labels response '{min(unknown)}' of prompt '{prompt.id}', which the prompts file does not hold",
            path=labels_file,
            field="response_id",
            hint="the answers were changed after they were labelled: give the prompts the labels were made from",
        )
    kept = [item for item in prompt.responses if item.id in labels and item.text.strip()]
    return _example(
        prompt,
        [item.id for item in kept],
        [_row(labels[item.id].scores, dimensions) for item in kept],
        [_confidence(labels[item.id], dimensions) for item in kept],
    )


def _from_prompts(
    path: Path, targets: Targets, wanted: Sequence[str] | None
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    prompts = list(read_prompts(path))
    if targets == "preferences":
        dimensions = tuple(wanted) if wanted else (PREFERENCE_DIMENSION,)
        items = [_preferred(prompt, dimensions) for prompt in prompts if prompt.preferences]
        if not items:
            raise DataError("no prompt has preferences", path=path, field="preferences")
        return tuple(items), dimensions
    found = {
        name: None
        for prompt in prompts
        for response in prompt.responses
        for name, value in (response.human or {}).items()
        if value is not None
    }
    if not found:
        raise DataError(
            "no response has human scores",
            path=path,
            field="responses.human",
            hint="name a label run to learn from a judge, or choose --targets preferences",
        )
    dimensions = _ordered(found, wanted, path)
    items = []
    for prompt in prompts:
        kept = [item for item in prompt.responses if item.human and item.text.strip()]
        rows = [_row(item.human, dimensions) for item in kept]
        if kept:
            items.append(_example(prompt, [item.id for item in kept], rows, None))
    return tuple(items), dimensions


def _preferred(prompt: Prompt, dimensions: Sequence[str]) -> Example:
    """Answers that take part in a choice, without scores."""
    named = {side for choice in prompt.preferences for side in (choice.winner, choice.loser)}
    ids = [item.id for item in prompt.responses if item.id in named]
    rows = [[math.nan] * len(dimensions) for _ in ids]
    place = {name: index for index, name in enumerate(ids)}
    pairs = tuple((place[choice.winner], place[choice.loser]) for choice in prompt.preferences)
    return _example(prompt, ids, rows, None, pairs)


def _example(
    prompt: Prompt,
    ids: Sequence[str],
    rows: list[list[float]],
    confidence: list[list[float]] | None,
    preferences: tuple[tuple[int, int], ...] = (),
) -> Example:
    texts = {item.id: item.text for item in prompt.responses}
    targets = np.array(rows, dtype=np.float32).reshape(len(ids), -1)
    return Example(
        prompt_id=prompt.id,
        document_id=prompt.document_id,
        context=prompt.context,
        query=prompt.question,
        response_ids=tuple(ids),
        responses=tuple(texts[name] for name in ids),
        targets_N_D=targets,
        confidence_N_D=np.array(confidence, np.float32) if confidence else np.ones_like(targets),
        preferences=preferences,
    )


def check_learnable(
    items: Sequence[Example], dimensions: Sequence[str], *, allow_constant: bool = False
) -> None:
    """Refuse training targets a model cannot learn from: none at all, or always the same score.

    `allow_constant` lets a dimension of one single score pass (the model will learn that constant).
    """
    targets = (
        np.concatenate([item.targets_N_D for item in items]) if items else np.empty((0, len(dimensions)))
    )
    for column, name in zip(targets.T, dimensions, strict=True):
        there = column[~np.isnan(column)]
        if len(there) == 0:
            raise UserError(
                f"no training answer has a score for '{name}'",
                "leave it out with --dimensions, or label it: judge-pipeline label … --retry-failed",
            )
        if np.ptp(there) == 0 and not allow_constant:
            raise UserError(
                f"all {len(there)} training targets of '{name}' are {there[0]:g}: there is nothing to learn",
                "the judge does not tell these answers apart: use a stronger judge, --score expected or "
                "--votes, more varied answers, leave it out with --dimensions, or go on with --allow-constant",
            )


def usable(items: Iterable[Example]) -> Iterator[Example]:
    """Examples with at least one target or preference; an answer whose every score failed stays, masked."""
    for item in items:
        if item.preferences or item.contrasts or not np.isnan(item.targets_N_D).all():
            yield item
