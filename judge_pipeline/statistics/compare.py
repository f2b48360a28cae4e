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
    calibration,
    decided_pairs,
    prompt_metrics,
    set_metrics,
    spearman_ceiling,
    tie_counts,
    within_kappa,
)
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Ratio
from judge_pipeline.statistics.table import OVERALL, REWARD, AnswerTable, Floats, Pair

Kind = Literal["model", "judge", "control", "baseline", "ceiling"]
"""A `judge` is a further one beside the model: every two of them are compared."""
PAIRED_METRICS = ("spearman", "pairs")
"""Figures whose difference to the model's row, or between two judges, is shown."""
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

    def vote(self, target: str, pair: Pair) -> float | None:
        """1 when the winner comes out better, 0 when the loser does, ½ for a tie; None where nothing is said."""
        if self.pairs is not None and target in (OVERALL, PREFERENCES, REWARD):
            vote = self.pairs.get((pair.winner, pair.loser))
            turned = self.pairs.get((pair.loser, pair.winner))
            return vote if vote is not None else None if turned is None else 1.0 - turned
        column = self.column(target)
        gap = np.nan if column is None else column[pair.winner] - column[pair.loser]
        return 0.5 + 0.5 * float(np.sign(gap)) if np.isfinite(gap) else None

    def pair_ratio(self, table: AnswerTable, target: str, pairs: Sequence[Pair]) -> Ratio:
        """Accuracy on given pairs; those it says nothing about are left out."""
        won, decided = np.zeros(len(table.prompts)), np.zeros(len(table.prompts))
        for pair in pairs:
            vote = self.vote(target, pair)
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

    @property
    def model(self) -> Predictor | None:
        """The first model: what every other row is compared with."""
        return next((item for item in self.predictors if item.kind == "model"), None)

    def graded(self, target: str, target_R: Floats) -> dict[str, Any]:
        """The table of a target with points."""
        ratios: dict[str, dict[str, Ratio]] = {}
        rows = []
        for predictor in self.predictors:
            column = predictor.column(target)
            if column is not None:
                ratios[predictor.name] = prompt_metrics(self.table, target_R, column)
                rows.append(self._graded_row(predictor, ratios[predictor.name], target, target_R, column))
            elif predictor.pairs is not None and target in (OVERALL, REWARD):
                pairs = decided_pairs(self.table, target_R)
                rows.append(self._pairs_row(predictor, target, pairs, ratios))
        known = np.isfinite(target_R)
        return {
            "target": target,
            "answers": int(known.sum()),
            "documents": len(set(self.table.document_R[known].tolist())),
            "mean": float(target_R[known].mean()) if known.any() else None,
            "spearman_ceiling": self.bootstrap.ratio(spearman_ceiling(self.table, target_R)).as_json(),
            "rows": rows,
            "paired": self._paired(target, target_R, decided_pairs(self.table, target_R)),
            **self._parts(ratios),
        }

    def preferred(self, pairs: Sequence[Pair], target: str = PREFERENCES) -> dict[str, Any]:
        """The table of choices between two answers, people's or known ones: which scores of `target` follow them."""
        ratios: dict[str, dict[str, Ratio]] = {}
        rows = [
            self._pairs_row(predictor, target, pairs, ratios)
            for predictor in self.predictors
            if predictor.pairs is not None or predictor.column(target) is not None
        ]
        prompts = {pair.prompt for pair in pairs}
        return {
            "target": target,
            "pairs": len(pairs),
            "documents": len({int(self.table.document_P[number]) for number in prompts}),
            "rows": rows,
            "paired": self._paired(PREFERENCES, None, pairs),
            **self._parts(ratios),
        }

    def _row(self, predictor: Predictor, own: dict[str, Ratio]) -> dict[str, Any]:
        within = {metric: self.bootstrap.ratio(ratio).as_json() for metric, ratio in own.items()}
        return {"name": predictor.name, "kind": predictor.kind, "within": within, "ahead": {}}

    def _pairs_row(
        self, predictor: Predictor, target: str, pairs: Sequence[Pair], ratios: dict[str, dict[str, Ratio]]
    ) -> dict[str, Any]:
        """A row that has pairs only, and the model ahead of it on those pairs that both decide."""
        ratio = predictor.pair_ratio(self.table, target, pairs)
        above_chance = Ratio(2 * ratio.numerator_P - ratio.denominator_P, ratio.denominator_P)
        ratios[predictor.name] = {"pairs": ratio, "somers_d": above_chance}
        row = self._row(predictor, ratios[predictor.name])
        if self.model is not None and predictor.name != self.model.name:
            row["ahead"] = self._pairs_difference(self.model, predictor, target, pairs)
        return row

    def _pairs_difference(
        self, one: Predictor, other: Predictor, target: str, pairs: Sequence[Pair]
    ) -> dict[str, dict[str, Any]]:
        """`one` minus `other` on the pairs that both decide."""
        shared = [pair for pair in pairs if None not in (one.vote(target, pair), other.vote(target, pair))]
        first, second = (single.pair_ratio(self.table, target, shared) for single in (one, other))
        return {"pairs": self.bootstrap.difference(first, second).as_json()}

    def _paired(self, target: str, target_R: Floats | None, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """Every two judges where there are further ones: the first minus the second, resampled together."""
        judges = [item for item in self.predictors if item.kind in ("model", "judge")]
        rows: list[dict[str, Any]] = []
        for one, other in itertools.combinations(judges, 2) if len(judges) > 1 else ():
            columns = one.column(target), other.column(target)
            if target_R is not None and columns[0] is not None and columns[1] is not None:
                gap = self._difference(columns[0], columns[1], target_R)
            else:
                gap = self._pairs_difference(one, other, target, pairs)
            if any(figure["value"] is not None for figure in gap.values()):
                rows.append({"name": f"{one.name} minus {other.name}", "paired": gap})
        return rows

    def _graded_row(
        self,
        predictor: Predictor,
        own: dict[str, Ratio],
        target: str,
        target_R: Floats,
        column: Floats,
    ) -> dict[str, Any]:
        if predictor.in_points:
            own["kappa_within"] = within_kappa(self.table, target_R, column)
        row = self._row(predictor, own)
        model = self.model
        other = None if model is None or model.name == predictor.name else model.column(target)
        if other is not None:
            row["ahead"] = self._difference(other, column, target_R)
        row["ties"] = tie_counts(self.table, target_R, column)
        if predictor.kind != "baseline":
            over = set_metrics(self.table, target_R, column, self.bootstrap, predictor.in_points)
            row["over_set"] = {name: estimate.as_json() for name, estimate in over.items()}
        if predictor.in_points:
            row["calibration"] = calibration(target_R, column)
        return row

    def _difference(self, one: Floats, other: Floats, target_R: Floats) -> dict[str, dict[str, Any]]:
        """Scores `one` minus `other`, on the answers that both score and on the same resamples of documents."""
        shared = np.where(np.isfinite(one) & np.isfinite(other), target_R, np.nan)
        first, second = (prompt_metrics(self.table, shared, scores) for scores in (one, other))
        return {
            metric: self.bootstrap.difference(first[metric], second[metric]).as_json()
            for metric in PAIRED_METRICS
        }

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
