"""What a set of pairs would teach: margins, lengths, and which dimension decides.

A reward that prefers long answers teaches length; this report says so before a GPU-hour is spent. Lengths are in
characters, so that every language and tokenizer counts alike within a set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from scipy import stats

from judge_pipeline.common.records import DIMENSIONS

SIGNIFICANT = 0.05
Row = dict[str, Any]


def pair_report(
    rows: Sequence[Row], weights: Sequence[dict[str, float] | None], counts: Counter[str]
) -> dict[str, Any]:
    """Everything the report holds, JSON-ready; `weights` are the dimension weights behind each row's reward."""
    return {
        "pairs": len(rows),
        "prompts": len({row["prompt_id"] for row in rows}),
        "documents": len({row["document_id"] for row in rows}),
        "left_out": {name: count for name, count in sorted(counts.items()) if name != "prompts: read"},
        "prompts_read": counts["prompts: read"],
        "rewards_of": dict(Counter(row["rewards_of"] for row in rows if row["rewards_of"])),
        "margins": _summary([row["margin"] for row in rows if row["margin"] is not None]),
        "lengths": length_report(rows),
        "decided_by": deciding_dimensions(rows, weights),
    }


def _summary(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"count": 0}
    array = np.asarray(values, dtype=float)
    quantiles = np.quantile(array, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
    names = ("min", "p10", "p25", "median", "p75", "p90", "max")
    counts, edges = np.histogram(array, bins=min(20, max(1, len(array))))
    return {
        "count": len(values),
        "mean": float(array.mean()),
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def length_report(rows: Sequence[Row]) -> dict[str, Any]:
    """Lengths of chosen against rejected, and whether they differ more than chance explains.

    The test is a sign test over prompts (one vote a prompt, so that many pairs of one prompt count once).
    """
    sides = [[len(row[side][-1]["content"]) for row in rows] for side in ("chosen", "rejected")]
    chosen, rejected = np.array(sides, dtype=float)
    votes: Counter[str] = Counter()
    for row, difference in zip(rows, (chosen - rejected).astype(int).tolist(), strict=True):
        votes[row["prompt_id"]] += difference
    longer, shorter = (sum(sign * vote > 0 for vote in votes.values()) for sign in (1, -1))
    decided = longer + shorter
    p_value, share = (stats.binomtest(longer, decided).pvalue, longer / decided) if decided else (1.0, 0.5)
    bias = None
    if p_value < SIGNIFICANT:
        side, of = ("longer", share) if share > 0.5 else ("shorter", 1 - share)
        bias = f"the chosen answer is {side} for {of:.0%} of the prompts (sign test, p = {p_value:.2g})"
    margins = np.array([row["margin"] for row in rows], dtype=float)  # None becomes NaN
    return {
        "unit": "characters",
        "chosen_mean": float(chosen.mean()),
        "rejected_mean": float(rejected.mean()),
        "chosen_median": float(np.median(chosen)),
        "rejected_median": float(np.median(rejected)),
        "prompts_chosen_longer": longer,
        "prompts_chosen_shorter": shorter,
        "share_longer": share,
        "sign_test_p": float(p_value),
        "length_bias": bias,
        "margin_length_spearman": _spearman(margins, chosen - rejected),
    }


def _spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    known = ~np.isnan(x)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return None
    return float(stats.spearmanr(x[known], y[known]).statistic)


def deciding_dimensions(
    rows: Sequence[Row], weights: Sequence[dict[str, float] | None]
) -> dict[str, dict[str, float | int]]:
    """For each dimension: pairs where its weighted gap is the widest, mean gap, and pairs where it objects."""
    decided: Counter[str] = Counter()
    gaps: dict[str, list[float]] = {}
    for row, used in zip(rows, weights, strict=True):
        weighted = {}
        for name, better in (row["chosen_scores"] or {}).items():
            worse = (row["rejected_scores"] or {}).get(name)
            if better is not None and worse is not None:
                gaps.setdefault(name, []).append(better - worse)
                weighted[name] = (used or {}).get(name, 1.0) * (better - worse)
        if weighted and max(weighted.values()) > 0:
            decided[max(weighted, key=lambda name: weighted[name])] += 1
    return {
        name: {
            "decides": decided[name],
            "objects": sum(gap < 0 for gap in gaps[name]),
            "mean_gap": float(np.mean(gaps[name])),
        }
        for name in [*DIMENSIONS, *sorted(set(gaps) - set(DIMENSIONS))]
        if name in gaps
    }


def print_report(report: dict[str, Any], output: Path, report_path: Path, file: TextIO) -> None:
    """The report as a few lines for the terminal."""
    mixed = f", {report['pairs_mixed_in']} mixed in" if report["pairs_mixed_in"] else ""
    print(
        f"{output}: {report['pairs_written']} pairs from {report['prompts']} of {report['prompts_read']} "
        f"prompts, {report['documents']} documents{mixed}",
        file=file,
    )
    for name, count in report["left_out"].items():
        print(f"  left out · {name}: {count}", file=file)
    if report["rewards_of"].keys() - {"file"}:
        counted = ", ".join(
            f"{count} pairs by those of the {name}" for name, count in report["rewards_of"].items()
        )
        print(f"  rewards  · {counted}", file=file)
    margins = report["margins"]
    if margins["count"]:
        print(
            f"  margins  · mean {margins['mean']:.2f}, median {margins['median']:.2f}, "
            f"{margins['min']:.2f} to {margins['max']:.2f} points",
            file=file,
        )
    if certainty := report.get("certainty"):
        print(
            f"  sureness · rewards of the file must differ by {certainty['least_margin']:.2f} points; measured on "
            f"{certainty['answers']} answers of {certainty['prompts']} prompts",
            file=file,
        )
    lengths = report["lengths"]
    print(
        f"  lengths  · chosen {lengths['chosen_mean']:.0f}, rejected {lengths['rejected_mean']:.0f} characters "
        f"on average; chosen longer for {lengths['share_longer']:.0%} of the prompts",
        file=file,
    )
    if lengths["length_bias"]:
        print(f"  LENGTH BIAS · {lengths['length_bias']}", file=file)
    for name, row in report["decided_by"].items():
        print(
            f"  decides  · {name}: {row['decides']} pairs (mean gap {row['mean_gap']:+.2f}, "
            f"against the choice in {row['objects']})",
            file=file,
        )
    print(f"  report   · {report_path}", file=file)
