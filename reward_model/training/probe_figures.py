"""How well a probe scores held-out answers: its readout, the plain head, and the same without the document.

In: points of each on held-out prompts. Out: figures with intervals over documents, as plain values for `probe.json`,
the terminal and the card. What a model knows of the document is the paired difference to a readout of the same layer
that is fitted to answers whose document is withheld: such a one knows how good answers are written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from judge_pipeline.statistics.agreement import pair_counts, within_correlation
from judge_pipeline.statistics.bootstrap import FEW_DOCUMENTS, DocumentBootstrap, Ratio
from judge_pipeline.statistics.render import aligned, markdown
from judge_pipeline.statistics.separation import TOGETHER, mean_correlation
from reward_model.data.batches import EncodedExample
from reward_model.training.losses import weighted_mean

Floats = NDArray[np.float64]
Figures = dict[str, Any]
REWARD = "reward"
GROUNDED = ("faithfulness", "completeness")
"""Outputs that nobody can judge without the document."""
ROWS = {"readout": "readout", "plain": "plain head", "withheld": "document withheld"}


def order_figures(items: Sequence[EncodedExample], predicted_A: Floats, target_A: Floats) -> dict[str, Ratio]:
    """Within-prompt Spearman and pairs in order, prompt by prompt; people's choices where there are no points."""
    sums = {name: (np.zeros(len(items)), np.zeros(len(items))) for name in ("spearman", "pairs")}
    start = 0
    for number, item in enumerate(items):
        part = slice(start, start + len(item.answers))
        start = part.stop
        predicted, target = predicted_A[part], target_A[part]
        if item.preferences:
            margins = np.array([predicted[winner] - predicted[loser] for winner, loser in item.preferences])
            sums["pairs"][0][number] = float((margins > 0).sum() + 0.5 * (margins == 0).sum())
            sums["pairs"][1][number] = len(margins)
            continue
        known = np.isfinite(target)
        predicted, target = predicted[known], target[known]
        if len(target) < 2 or np.ptp(target) == 0:
            continue
        sums["spearman"][0][number] = within_correlation(target, predicted, "spearman")
        sums["spearman"][1][number] = 1.0
        sums["pairs"][0][number], sums["pairs"][1][number] = pair_counts(target, predicted)
    return {name: Ratio(*arrays) for name, arrays in sums.items()}


def together(items: Sequence[EncodedExample], points_A_D: Floats) -> float | None:
    """`mean_correlation` of outputs within prompts, what best-of-N and pairs see; of answers with any target."""
    counts = [len(item.answers) for item in items]
    known = [np.isfinite(item.targets_N_D).any(axis=1) for item in items]
    if not any(map(np.any, known)):  # people's choices alone
        known = [np.ones(count, dtype=bool) for count in counts]
    parts = np.split(points_A_D, np.cumsum(counts)[:-1])
    kept = [part[there] for part, there in zip(parts, known, strict=True) if there.any()]
    return mean_correlation(np.concatenate([part - part.mean(axis=0) for part in kept]))


def held_out_figures(
    items: Sequence[EncodedExample],
    documents: Sequence[str],
    points: Mapping[str, torch.Tensor],
    dimensions: Sequence[str],
    weights_D: torch.Tensor,
) -> Figures:
    """Figures of each scorer in `points` (readout, plain, withheld; (A, D) each) on held-out prompts.

    Returns:
        `prompts`, `documents`; `outputs`: name → scorer → {spearman, pairs}, with `difference`, the readout's Spearman
        minus that without the document, or its pairs where there is no Spearman; `together`: scorer → correlation.
    """
    target_A_D = torch.from_numpy(np.concatenate([item.targets_N_D for item in items]))
    _, numbers = np.unique(np.asarray(documents), return_inverse=True)
    bootstrap = DocumentBootstrap(numbers)
    outputs: Figures = {}
    for column, name in enumerate([*dimensions, REWARD]):
        target = np.round(
            _column(target_A_D, column, weights_D), 4
        )  # means of equal scores differ by rounding
        found = {
            scorer: order_figures(items, _column(values, column, weights_D), target)
            for scorer, values in points.items()
        }
        outputs[name] = {
            scorer: {kind: bootstrap.ratio(ratio).as_json() for kind, ratio in ratios.items()}
            for scorer, ratios in found.items()
        }
        kind = "spearman" if found["readout"]["spearman"].value is not None else "pairs"
        difference = bootstrap.difference(found["readout"][kind], found["withheld"][kind])
        outputs[name]["difference"] = {"of": kind, **difference.as_json()}
    moving = {scorer: together(items, values.double().numpy()) for scorer, values in points.items()}
    moving["targets"] = together(items, target_A_D.double().numpy())
    return {
        "prompts": len(items),
        "documents": bootstrap.documents,
        "outputs": outputs,
        "together": moving,
    }


def _column(points_A_D: torch.Tensor, column: int, weights_D: torch.Tensor) -> Floats:
    if column < points_A_D.shape[1]:
        return points_A_D[:, column].double().numpy()
    return weighted_mean(points_A_D.double(), weights_D).numpy()


def pair_score(figures: Figures, scorer: str) -> float:
    """Mean over outputs and reward of the pairs in order: what decides which model is kept."""
    values = [output[scorer]["pairs"]["value"] for output in figures["outputs"].values()]
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else math.nan


def _cell(figures: Mapping[str, Any]) -> str:
    values = [figures[kind]["value"] for kind in ("spearman", "pairs")]
    return " / ".join("–" if value is None else f"{value:.2f}" for value in values)


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    inside = "" if figure["low"] is None else f" [{figure['low']:+.2f}, {figure['high']:+.2f}]"
    return f"{figure['value']:+.2f}{inside}"


def _table(figures: Figures) -> tuple[list[str], list[list[str]]]:
    heads = ["", *ROWS.values(), "readout − withheld"]
    rows = [
        [name, *(_cell(output[scorer]) for scorer in ROWS), _interval(output["difference"])]
        for name, output in figures["outputs"].items()
    ]
    moving = figures["together"]
    cells = ["–" if moving[scorer] is None else f"{moving[scorer]:.2f}" for scorer in ROWS]
    target = moving["targets"]
    rows.append(["correlation between outputs", *cells, "" if target is None else f"targets: {target:.2f}"])
    return heads, rows


def remarks(figures: Figures) -> list[str]:
    """Plain sentences on what the figures do not show."""
    found = []
    for name in GROUNDED:
        difference = figures["outputs"].get(name, {}).get("difference")
        if difference is None or difference["value"] is None:
            continue
        if difference["low"] is None or difference["low"] <= 0:
            found.append(
                f"{name} is not shown to rest on the document: held-out answers are ordered "
                f"{_interval(difference)} better than by a readout from which the document is withheld"
            )
    moving, target = figures["together"], figures["together"]["targets"]
    for scorer in ("readout", "plain"):
        if target is not None and moving[scorer] is not None and moving[scorer] > target + TOGETHER:
            found.append(
                f"outputs of the {ROWS[scorer]} move together (correlation {moving[scorer]:.2f}) where the targets do not "
                f"({target:.2f})"
            )
    if figures["documents"] < FEW_DOCUMENTS:
        found.append(
            f"{figures['documents']} held-out documents are few: the intervals say how little is known"
        )
    return found


def terminal_table(figures: Figures) -> str:
    """Spearman / pairs on held-out documents, for the terminal."""
    return aligned(*_table(figures))


def markdown_section(figures: Figures, description: str) -> str:
    """The same for the card, with the remarks."""
    lines = "\n".join(f"- {remark}" for remark in remarks(figures))
    return (
        f"The readout ({description}) is what `reward-model score` uses; the plain head is what other programs find "
        "in the checkpoint, taught from it. Within-prompt Spearman / pairs in order, and without the document the "
        f"same of a readout that was fitted to answers alone:\n\n{markdown(*_table(figures))}\n\n{lines}".rstrip()
    )
