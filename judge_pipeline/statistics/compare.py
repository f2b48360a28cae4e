"""One table a target: every predictor beside every baseline, with intervals and differences.

In: an answer table, targets (judge or people), predictors (a model, a judge, baselines, ceilings). Out: plain
dictionaries, ready for JSON, which `render` turns into text, Markdown and HTML.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from judge_pipeline.statistics.agreement import (
    PROMPT_METRICS,
    decided_pairs,
    pair_accuracy,
    prompt_metrics,
    tie_counts,
)
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Ratio
from judge_pipeline.statistics.table import OVERALL, REWARD, AnswerTable, Floats, Pair
from judge_pipeline.statistics.whole_set import calibration, set_metrics

Kind = Literal["model", "baseline", "ceiling"]
PREFERENCES = "preferences"
"""The target that is not a score but people's choices between two answers."""
GROUP_METRICS = ("spearman", "pairs", "best_of_n")
LENGTH_EDGES = tuple(1000 * 2**power for power in range(8))


@dataclass(frozen=True)
class Predictor:
    """Something that scores answers, in columns by name, or one column for every target, or pairs only."""

    name: str
    kind: Kind
    columns: dict[str, Floats] = field(default_factory=dict)
    any_target: Floats | None = None
    """One score (R,) that stands for every target, as a baseline's does."""
    pairs: dict[tuple[int, int], float] | None = None
    """(row, other row) → 1 when the first is better, 0 when the second is, ½ for a tie."""
    in_points: bool = False
    """Whether its scores are in the target's points, so that errors and calibration mean something."""

    def column(self, target: str) -> Floats | None:
        """The scores to compare with a target of that name; a reward answers for `overall` and preferences."""
        if target in self.columns:
            return self.columns[target]
        if target in (OVERALL, PREFERENCES, REWARD) and REWARD in self.columns:
            return self.columns[REWARD]
        return self.any_target

    def pair_ratio(self, table: AnswerTable, target: str, pairs: Sequence[Pair]) -> Ratio | None:
        """Accuracy on given pairs; None where this predictor says nothing about the target."""
        if self.pairs is not None and target in (OVERALL, PREFERENCES, REWARD):
            return _voted_ratio(table, pairs, self.pairs)
        column = self.column(target)
        return None if column is None else pair_accuracy(table, pairs, column)


def _voted_ratio(table: AnswerTable, pairs: Sequence[Pair], votes: dict[tuple[int, int], float]) -> Ratio:
    won, decided = np.zeros(len(table.prompts)), np.zeros(len(table.prompts))
    for pair in pairs:
        vote = votes.get((pair.winner, pair.loser))
        if vote is None and (pair.loser, pair.winner) in votes:
            vote = 1.0 - votes[pair.loser, pair.winner]
        if vote is not None:
            won[pair.prompt] += vote
            decided[pair.prompt] += 1
    return Ratio(won, decided)


@dataclass
class Comparison:
    """Everything that is compared, and how intervals are drawn."""

    table: AnswerTable
    predictors: list[Predictor]
    bootstrap: DocumentBootstrap

    def graded(self, target: str, target_R: Floats) -> dict[str, Any]:
        """The table of a target with points."""
        ratios: dict[str, dict[str, Ratio]] = {}
        rows = []
        for predictor in self.predictors:
            column = predictor.column(target)
            if column is not None:
                ratios[predictor.name] = prompt_metrics(self.table, target_R, column)
                rows.append(self._graded_row(predictor, ratios, target_R, column))
            elif predictor.pairs is not None and target in (OVERALL, REWARD):
                pairs = decided_pairs(self.table, target_R)
                ratios[predictor.name] = {"pairs": _voted_ratio(self.table, pairs, predictor.pairs)}
                rows.append(self._row(predictor, ratios[predictor.name], ratios))
        known = np.isfinite(target_R)
        return {
            "target": target,
            "answers": int(known.sum()),
            "documents": self._documents(known),
            "mean": float(target_R[known].mean()) if known.any() else None,
            "rows": rows,
            **self._parts(ratios),
        }

    def _documents(self, known_R: np.ndarray) -> int:
        document_R = np.repeat(self.table.document_P, self.table.end_P - self.table.start_P)
        return len(set(document_R[known_R].tolist()))

    def preferred(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """The table of people's choices between two answers."""
        ratios: dict[str, dict[str, Ratio]] = {}
        rows = []
        for predictor in self.predictors:
            ratio = predictor.pair_ratio(self.table, PREFERENCES, pairs)
            if ratio is not None:
                ratios[predictor.name] = {"pairs": ratio}
                rows.append(self._row(predictor, ratios[predictor.name], ratios))
        prompts = {pair.prompt for pair in pairs}
        return {
            "target": PREFERENCES,
            "pairs": len(pairs),
            "documents": len({int(self.table.document_P[number]) for number in prompts}),
            "rows": rows,
            **self._parts(ratios),
        }

    def _row(
        self, predictor: Predictor, own: dict[str, Ratio], ratios: dict[str, dict[str, Ratio]]
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"name": predictor.name, "kind": predictor.kind, "within": {}, "ahead": {}}
        for metric, ratio in own.items():
            row["within"][metric] = self.bootstrap.ratio(ratio).as_json()
        model = next((item.name for item in self.predictors if item.kind == "model"), None)
        if model is not None and model in ratios and predictor.name != model:
            # How far the model is ahead of this row, on the same resamples of documents.
            row["ahead"] = {
                metric: self.bootstrap.difference(ratios[model][metric], own[metric]).as_json()
                for metric in ("spearman", "pairs")
                if metric in own and metric in ratios[model]
            }
        return row

    def _graded_row(
        self,
        predictor: Predictor,
        ratios: dict[str, dict[str, Ratio]],
        target_R: Floats,
        column: Floats,
    ) -> dict[str, Any]:
        row = self._row(predictor, ratios[predictor.name], ratios)
        row["ties"] = tie_counts(self.table, target_R, column)
        if predictor.kind != "baseline":
            over = set_metrics(self.table, target_R, column, self.bootstrap)
            if not predictor.in_points:
                over.pop("mae")
            row["over_set"] = {name: estimate.as_json() for name, estimate in over.items()}
        if predictor.in_points:
            row["calibration"] = calibration(target_R, column)
        return row

    def _parts(self, ratios: dict[str, dict[str, Ratio]]) -> dict[str, Any]:
        """The same figures by data set and by the document's length."""
        table = self.table
        groups = {name: np.array([group == name for group in table.group_P]) for name in set(table.group_P)}
        bins = length_bins(table.length_P)
        return {
            "by_group": self._split(groups, ratios) if len(groups) > 1 else {},
            "by_length": self._split(bins, ratios) if len(bins) > 1 else {},
            "length_unit": table.length_unit,
        }

    def _split(
        self, masks: dict[str, np.ndarray], ratios: dict[str, dict[str, Ratio]]
    ) -> dict[str, dict[str, dict[str, Any]]]:
        parts: dict[str, dict[str, dict[str, Any]]] = {}
        for part in masks:
            found = {}
            for name, own in ratios.items():
                figures = {
                    metric: self.bootstrap.ratio(own[metric].where(masks[part])).as_json()
                    for metric in GROUP_METRICS
                    if metric in own
                }
                if any(figure["count"] for figure in figures.values()):
                    found[name] = figures
            if found:
                parts[part] = found
        return parts


def length_bins(length_P: Floats) -> dict[str, np.ndarray]:
    """Masks (P,) of documents by length, each bin twice as wide as the one before; empty bins are left out."""
    edges = [0.0, *map(float, LENGTH_EDGES), np.inf]
    bins = {}
    for low, high in itertools.pairwise(edges):
        mask = (length_P >= low) & (length_P < high)
        if mask.any():
            name = f"{low / 1000:.0f}k+" if high == np.inf else f"{low / 1000:.0f}k–{high / 1000:.0f}k"
            bins[name] = mask
    return bins


__all__ = [
    "GROUP_METRICS",
    "PREFERENCES",
    "PROMPT_METRICS",
    "Comparison",
    "Kind",
    "Predictor",
    "length_bins",
]
