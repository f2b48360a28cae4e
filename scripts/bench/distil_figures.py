"""Figures of scorers over several seeds of the folds, with intervals over documents and paired differences.

In: points of every answer for each seed. Out: plain data for `distil.json`. A figure is the mean over seeds; prompts
are resampled by document, the same resamples for every scorer, so a difference has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from judge_pipeline.statistics.agreement import pair_accuracy, prompt_metrics
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Estimate, Ratio
from judge_pipeline.statistics.separation import separation
from judge_pipeline.statistics.table import REWARD, AnswerTable, Floats

KINDS = ("spearman", "pairs")
Columns = Sequence[Floats]
"""One column (A,) a seed; a single one where seeds make no difference."""


def mean_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """The mean over seeds, prompt by prompt."""
    numerators = np.mean([ratio.numerator_P for ratio in ratios], axis=0)
    return Ratio(numerators, np.mean([ratio.denominator_P for ratio in ratios], axis=0))


def with_reward(points: Mapping[str, Floats]) -> dict[str, Floats]:
    """Outputs and their mean, the reward with equal weights."""
    return {**points, REWARD: np.mean(list(points.values()), axis=0)}


@dataclass
class Ruler:
    """Measures columns against the targets of one set."""

    table: AnswerTable
    targets: Mapping[str, Floats]
    bootstrap: DocumentBootstrap = field(init=False)
    ratios: dict[str, dict[str, dict[str, Ratio]]] = field(default_factory=dict)
    """Target → scorer → kind → ratio; people's choices under "preferences"."""
    seeds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Target → scorer → Spearman of each seed."""

    def __post_init__(self) -> None:
        self.bootstrap = DocumentBootstrap(self.table.document_P)

    def add(self, target: str, scorer: str, columns: Columns) -> None:
        """Measure one scorer's columns against one target."""
        found = [prompt_metrics(self.table, self.targets[target], column) for column in columns]
        kinds = {kind: mean_ratio([one[kind] for one in found]) for kind in KINDS}
        self.ratios.setdefault(target, {})[scorer] = kinds
        values = [one["spearman"].value for one in found]
        self.seeds.setdefault(target, {})[scorer] = [value for value in values if value is not None]

    def add_preferences(self, scorer: str, columns: Columns) -> None:
        """Measure a reward's columns against people's choices."""
        pairs = self.table.preferences()
        found = [pair_accuracy(self.table, pairs, column) for column in columns]
        self.ratios.setdefault("preferences", {})[scorer] = {"pairs": mean_ratio(found)}

    def figure(self, target: str, scorer: str, kind: str) -> dict[str, Any]:
        """One figure with its interval."""
        return self.bootstrap.ratio(self.ratios[target][scorer][kind]).as_json()

    def difference(self, target: str, first: str, second: str, kind: str = "spearman") -> dict[str, Any]:
        """`first` minus `second`, paired over documents."""
        both = self.ratios[target]
        found: Estimate = self.bootstrap.difference(both[first][kind], both[second][kind])
        return {"against": second, **found.as_json()}

    def best(self, target: str, among: Sequence[str], kind: str = "spearman") -> str:
        """The scorer with the highest figure: for baselines a choice made with the answers in view, in their favour."""
        values = {name: self.ratios[target][name][kind].value for name in among}
        return max(among, key=lambda name: values[name] if values[name] is not None else -2.0)  # type: ignore[arg-type, return-value]

    def rows(self, target: str) -> dict[str, Any]:
        """Scorer → its figures."""
        return {
            scorer: {kind: self.figure(target, scorer, kind) for kind in kinds}
            | {"seeds": self.seeds.get(target, {}).get(scorer, [])}
            for scorer, kinds in self.ratios[target].items()
        }

    def together(self, outputs: Sequence[Mapping[str, Floats]]) -> dict[str, Any]:
        """Correlation between outputs beside that between targets, prompts' means taken off; mean over seeds."""
        found = [separation(self.table, self.targets, one, self.bootstrap) for one in outputs]
        first = found[0]
        pairs = [
            {
                "outputs": pair["outputs"],
                "output": float(np.mean([one["pairs"][place]["within"]["outputs"] for one in found])),
                "target": pair["within"]["targets"],
            }
            for place, pair in enumerate(first["pairs"])
        ]
        return {
            "pairs": pairs,
            "outputs": float(np.mean([abs(pair["output"]) for pair in pairs])),
            "targets": float(np.mean([abs(pair["target"]) for pair in pairs])),
            "partial": first["partial"],
        }
