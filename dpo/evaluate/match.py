"""Answers of two models to the same prompts, side by side, with their rewards. Pure but for reading files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpo.judged import as_judged, labels_by_answer
from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import Label, Prompt, Response
from judge_pipeline.replies.verdicts import VERDICT_POINTS


@dataclass
class Match:
    """One prompt with the answers of model A and of model B."""

    prompt: Prompt
    answers: tuple[list[Response], list[Response]]
    vote: float | None = None
    """1: A is better, 0: B is, ½: a tie; from rewards or from the judge."""
    labels: tuple[dict[str, Label], dict[str, Label]] = field(default_factory=lambda: ({}, {}))

    def mean_reward(self, side: int) -> float | None:
        """Mean reward of one side's answers; None unless every answer of it has one."""
        rewards = [answer.reward for answer in self.answers[side]]
        known = [reward for reward in rewards if reward is not None]
        return float(np.mean(known)) if known and len(known) == len(rewards) else None

    def mean_length(self, side: int) -> float:
        """Mean length of one side's answers, in characters."""
        return float(np.mean([len(answer.text) for answer in self.answers[side]]))


def _usable(prompt: Prompt) -> list[Response]:
    return [response for response in prompt.responses if response.text.strip()]


def match_files(first: Path, second: Path) -> tuple[list[Match], dict[str, int]]:
    """Pair prompts by id; counts prompts without a partner or an answer, and the empty answers of each side.

    Raises:
        DataError: the same id stands for another question or document.
        UserError: no prompt is in both files.
    """
    others = {prompt.id: prompt for prompt in read_prompts(second, need_responses=True)}
    matches: list[Match] = []
    left_out = {"only in the first file": 0, "only in the second file": 0, "without an answer": 0}
    empty = [0, 0]
    seen = set()
    for prompt in read_prompts(first, need_responses=True):
        other = others.get(prompt.id)
        if other is None:
            left_out["only in the first file"] += 1
            continue
        seen.add(prompt.id)
        if (prompt.query, prompt.context) != (other.query, other.context):
            raise DataError(
                f"prompt '{prompt.id}' has another question or document than in {first}",
                path=second,
                field="query" if prompt.query != other.query else "context",
                hint="both models must have answered the same prompts",
            )
        answers = (_usable(prompt), _usable(other))
        for side, (record, kept) in enumerate(zip((prompt, other), answers, strict=True)):
            empty[side] += len(record.responses) - len(kept)
        if all(answers):
            matches.append(Match(prompt, answers))
        else:
            left_out["without an answer"] += 1
    left_out["only in the second file"] = len(others.keys() - seen)
    left_out |= {"empty answers of the first file": empty[0], "empty answers of the second file": empty[1]}
    if not matches:
        raise UserError(
            f"{first} and {second} have no answered prompt in common", "prompts are matched by their id"
        )
    return matches, left_out


def take_labels(matches: Iterable[Match], runs: tuple[Path, Path]) -> None:
    """Give every answer the judge's scores and reward, and keep the labels for their evidence."""
    found = [labels_by_answer(path) for path in runs]
    for match in matches:
        for answers, labels, kept in zip(match.answers, found, match.labels, strict=True):
            for position, answer in enumerate(answers):
                label = labels.get((match.prompt.id, answer.id))
                answers[position] = as_judged(answer, label)
                if label:
                    kept[answer.id] = label


def facts_of(label: Label) -> tuple[int, float] | None:
    """(facts the answer states, how many the document supports); None where faithfulness was not judged whole."""
    statements: list[dict[str, Any]] | None = label.evidence.get("faithfulness", {}).get("statements")
    if statements is None or any(row.get("verdict") not in VERDICT_POINTS for row in statements):
        return None
    return len(statements), sum(VERDICT_POINTS[row["verdict"]] for row in statements)


def vote_by_reward(match: Match, tie_margin: float) -> float | None:
    """A's mean reward against B's; within `tie_margin` points it is a tie."""
    first, second = match.mean_reward(0), match.mean_reward(1)
    if first is None or second is None:
        return None
    if abs(first - second) <= tie_margin + 1e-9:
        return 0.5
    return 1.0 if first > second else 0.0
