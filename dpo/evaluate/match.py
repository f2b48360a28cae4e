"""Answers of two models to the same prompts, side by side, with their rewards. Pure but for reading files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpo.judged import as_judged
from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import labels_by_answer, read_prompts
from judge_pipeline.common.records import Label, Prompt, Response
from judge_pipeline.replies.verdicts import VERDICT_POINTS


@dataclass
class Match:
    """One prompt with the answers of model A and of model B."""

    prompt: Prompt
    answers: tuple[list[Response], list[Response]]
    vote: float | None = None
    """1: A is better, 0: B is, ½: a tie; from rewards or from the judge."""
    first_only: bool = False
    """Whether the vote is about the first answers alone; else about all of both sides."""
    labels: tuple[dict[str, Label], dict[str, Label]] = field(default_factory=lambda: ({}, {}))

    def mean_reward(self, side: int) -> float | None:
        """Mean reward of one side's answers; None unless every answer of it has one."""
        known = [answer.reward for answer in self.answers[side] if answer.reward is not None]
        return float(np.mean(known)) if known and len(known) == len(self.answers[side]) else None

    def mean_length(self, side: int) -> float:
        """Mean length of one side's answers, in characters."""
        return float(np.mean([len(answer.text) for answer in self.answers[side]]))

    def voted_length(self, side: int) -> float:
        """Mean length of the answers that the vote is about, in characters."""
        return float(len(self.answers[side][0].text)) if self.first_only else self.mean_length(side)

    def mean_score(self, side: int, dimension: str) -> float | None:
        """Mean of one side's scores of a dimension, where there are any."""
        values = [(answer.scores or {}).get(dimension) for answer in self.answers[side]]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def facts(self, side: int) -> list[tuple[int, float]]:
        """(facts an answer states, how many the document supports) where faithfulness was judged whole."""
        labels = (self.labels[side].get(answer.id) for answer in self.answers[side])
        return [found for label in labels if label and (found := facts_of(label)) is not None]


def match_files(first: Path, second: Path) -> tuple[list[Match], dict[str, int]]:
    """Pair prompts by id; counts prompts without a partner or an answer, and the empty answers of each side.

    Raises:
        DataError: the same id stands for another question or document.
        UserError: no prompt is in both files.
    """
    others = {prompt.id: prompt for prompt in read_prompts(second, need_responses=True)}
    matches: list[Match] = []
    left_out = {"only in the first file": 0, "only in the second file": 0, "without an answer": 0}
    left_out |= {"empty answers of the first file": 0, "empty answers of the second file": 0}
    for prompt in read_prompts(first, need_responses=True):
        other = others.pop(prompt.id, None)
        if other is None:
            left_out["only in the first file"] += 1
            continue
        if (prompt.question, prompt.context) != (other.question, other.context):
            raise DataError(
                f"prompt '{prompt.id}' has another question or document than in {first}",
                path=second,
                field="query" if prompt.question != other.question else "context",
                hint="both models must have answered the same prompts",
            )
        ours, theirs = ([item for item in x.responses if item.text.strip()] for x in (prompt, other))
        left_out["empty answers of the first file"] += len(prompt.responses) - len(ours)
        left_out["empty answers of the second file"] += len(other.responses) - len(theirs)
        if ours and theirs:
            matches.append(Match(prompt, (ours, theirs)))
        else:
            left_out["without an answer"] += 1
    left_out["only in the second file"] = len(others)
    if not matches:
        message = f"{first} and {second} have no answered prompt in common"
        raise UserError(message, "prompts are matched by their id")
    return matches, left_out


def take_labels(matches: Iterable[Match], runs: tuple[Path, Path]) -> None:
    """Give every answer the judge's scores and reward, and keep the labels for their evidence."""
    found = [labels_by_answer(path) for path in runs]
    for match in matches:
        for answers, labels, kept in zip(match.answers, found, match.labels, strict=True):
            own = {item.id: labels.get((match.prompt.id, item.id)) for item in answers}
            answers[:] = [as_judged(item, own[item.id]) for item in answers]
            kept.update({name: label for name, label in own.items() if label})


def facts_of(label: Label) -> tuple[int, float] | None:
    """(facts the answer states, how many the document supports); None where faithfulness was not judged whole."""
    statements = label.evidence.get("faithfulness", {}).get("statements")
    if statements is None or any(row.get("verdict") not in VERDICT_POINTS for row in statements):
        return None
    return len(statements), sum(VERDICT_POINTS[row["verdict"]] for row in statements)


def vote_by_reward(match: Match, tie_margin: float) -> float | None:
    """A's mean reward against B's; within `tie_margin` points it is a tie."""
    first, second = match.mean_reward(0), match.mean_reward(1)
    if first is None or second is None:
        return None
    return 0.5 if abs(first - second) <= tie_margin + 1e-9 else float(first > second)
