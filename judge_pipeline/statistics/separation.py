"""Are four scores four? How far outputs move together where their targets do not.

In: outputs and targets of the same answers, by dimension. Out: plain data: the correlation of every two outputs beside
that of their targets, and the partial correlation of each output with its own target, the other targets given.

"Within" figures are of values minus their prompt's mean, pooled over answers: what best-of-N and pairs see. "Overall"
figures hold the differences between prompts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from judge_pipeline.statistics.agreement import SET_REPLICATES
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.table import AnswerTable, Floats, Ints

TOGETHER = 0.1
"""Outputs move together when their |correlation| within prompts is this much above their targets'."""


def separation(
    table: AnswerTable,
    targets: Mapping[str, Floats],
    outputs: Mapping[str, Floats],
    bootstrap: DocumentBootstrap,
) -> dict[str, Any]:
    """Correlations of outputs and of targets, pair by pair, and partial correlations; for names that both have.

    Only answers with every one of those values count. Empty with fewer than two names.
    """
    names = [name for name in outputs if name in targets]
    if len(names) < 2:
        return {}
    target_R_D = np.stack([targets[name] for name in names], axis=1)
    output_R_D = np.stack([outputs[name] for name in names], axis=1)
    known = np.isfinite(np.concatenate([target_R_D, output_R_D], axis=1)).all(axis=1)
    target_R_D[~known], output_R_D[~known] = np.nan, np.nan
    rows = np.flatnonzero(known)
    within = {"outputs": table.centred(output_R_D), "targets": table.centred(target_R_D)}
    overall = {"outputs": output_R_D, "targets": target_R_D}
    pairs = []
    for i, j in combinations(range(len(names)), 2):
        row: dict[str, Any] = {"outputs": [names[i], names[j]]}
        for kind, sides in (("within", within), ("overall", overall)):
            row[kind] = {side: pearson(values[rows, i], values[rows, j]) for side, values in sides.items()}
        row["excess"] = _excess(row["within"])
        row["together"] = row["excess"] is not None and row["excess"] > TOGETHER
        pairs.append(row)
    return {
        "answers": len(rows),
        "threshold": TOGETHER,
        "pairs": pairs,
        "mean": {
            kind: {side: _mean([pair[kind][side] for pair in pairs]) for side in ("outputs", "targets")}
            for kind in ("within", "overall")
        },
        "partial": {
            name: bootstrap.statistic(
                _partial(within["outputs"][:, place], within["targets"], place),
                table.document_R,
                rows,
                SET_REPLICATES,
            ).as_json()
            for place, name in enumerate(names)
        },
    }


def _excess(sides: Mapping[str, float | None]) -> float | None:
    outputs, targets = sides["outputs"], sides["targets"]
    return None if outputs is None or targets is None else abs(outputs) - abs(targets)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [abs(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def mean_correlation(values_R_D: Floats) -> float | None:
    """Mean over pairs of columns of |Pearson's r|: a pair that moves against each other does not make up for one that
    moves together. Rows with every value count; None for one column, or where none varies."""
    known = values_R_D[np.isfinite(values_R_D).all(axis=1)].T
    return _mean(pearson(first, second) for first, second in combinations(known, 2))


def pearson(first: Floats, second: Floats) -> float | None:
    """Pearson's r; None where one of the two does not vary."""
    if len(first) < 3 or _constant(first) or _constant(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _constant(values: Floats) -> bool:
    return bool(np.std(values) <= 1e-9 * (1 + np.abs(values).max()))


def partial_correlation(first: Floats, second: Floats, given_N_K: Floats) -> float | None:
    """Pearson's r of what least squares on `given` (and a constant) leaves of both; None where nothing is left."""
    design = np.column_stack([np.ones(len(first)), given_N_K])
    both = np.column_stack([first, second])
    rest = both - design @ np.linalg.lstsq(design, both, rcond=None)[0]
    # What rounding leaves of a value that the others explain whole is not a rest.
    if (
        len(first) < given_N_K.shape[1] + 3
        or (rest.std(axis=0) <= 1e-9 * (1 + np.abs(both).max(axis=0))).any()
    ):
        return None
    return pearson(rest[:, 0], rest[:, 1])


def _partial(output_R: Floats, target_R_D: Floats, place: int) -> Callable[[Ints], float | None]:
    others = np.delete(target_R_D, place, axis=1)
    return lambda rows: partial_correlation(output_R[rows], target_R_D[rows, place], others[rows])


def remarks(found: Mapping[str, Any]) -> list[str]:
    """A sentence when outputs move together and their targets do not."""
    moving = [pair for pair in found.get("pairs", []) if pair["together"]]
    if not moving:
        return []
    listed = ", ".join(
        f"{' and '.join(pair['outputs'])} {pair['within']['outputs']:.2f} (targets {pair['within']['targets']:.2f})"
        for pair in moving
    )
    return [
        f"outputs move together where their targets do not (correlation within prompts, more than "
        f"{found['threshold']:g} above the targets'): {listed}"
    ]
