"""How faithfully a reward model repeats its judge (or agrees with people): every figure, beside baselines and ceiling.

In: answers with targets (judge labels or people's values) and a model's scores. Out: plain data, the same for the
`evaluate` command, the model card and the learning curve. The statistics, intervals and baselines are those of
`judge_pipeline.statistics`, so a model and a judge are measured with one ruler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from judge_pipeline.common.records import Label
from judge_pipeline.statistics.agreement import prompt_metrics
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.compare import Comparison, Kind, Predictor
from judge_pipeline.statistics.raters import self_agreement, vote_values
from judge_pipeline.statistics.separation import separation
from judge_pipeline.statistics.table import REWARD, AnswerTable, Floats, Pair
from reward_model.fidelity.free_baselines import STACK
from reward_model.fidelity.remarks import remarks

MODEL = "reward model"


def evaluate_scores(
    table: AnswerTable,
    targets: Mapping[str, Floats],
    predicted: Mapping[str, Floats],
    *,
    preferences: Sequence[Pair] = (),
    ceilings: Mapping[str, Mapping[str, Floats]] | None = None,
    controls: Mapping[str, Mapping[str, Floats]] | None = None,
    baselines: Mapping[str, Floats] | None = None,
    stacked: Mapping[str, Floats] | None = None,
    labels: Mapping[tuple[str, str], Label] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Fidelity of scores as plain data.

    Args:
        table: the answers, R of them.
        targets: name → points (R,), NaN where there is none; `reward` among them.
        predicted: name → the model's points (R,).
        preferences: people's choices, where there are any.
        ceilings: name → columns of something that shares the targets' noise, such as a second label run.
        controls: name → columns of the same model without the document, or with another one.
        baselines: name → one score an answer (R,).
        stacked: target → what all baselines together make of it (R,).
        labels: whose votes, where kept, give the judge's agreement with itself.
        replicates: resamples of the documents.
        seed: of the resamples.
        notes: remarks for the reader.
    """
    bootstrap = DocumentBootstrap(table.document_P, replicates, seed)
    rows = predictors(predicted, controls or {}, baselines or {}, ceilings or {}, stacked or {})
    comparison = Comparison(table, rows, bootstrap)
    known = {name: column for name, column in targets.items() if np.isfinite(column).any()}
    results = [comparison.graded(name, column) for name, column in known.items()]
    if preferences:
        results.append(comparison.preferred(preferences))
    votes = vote_values(table, labels or {})
    own = {name: self_agreement(table, values, bootstrap, seed) for name, values in votes.items()}
    found = {
        "prompts": len(table.prompts),
        "answers": table.rows,
        "documents": table.documents,
        "notes": list(notes),
        "results": results,
        "heads": head_matrix(table, known, predicted, bootstrap),
        "separation": separation(
            table, {name: column for name, column in known.items() if name != REWARD}, predicted, bootstrap
        ),
        "votes": {name: found for name, found in own.items() if found is not None},
    }
    return {**found, "remarks": remarks(found)}


def predictors(
    predicted: Mapping[str, Floats],
    controls: Mapping[str, Mapping[str, Floats]],
    baselines: Mapping[str, Floats],
    ceilings: Mapping[str, Mapping[str, Floats]] | None = None,
    stacked: Mapping[str, Floats] | None = None,
) -> list[Predictor]:
    """The model's row and those beside it."""
    kinds: list[tuple[Kind, Mapping[str, Mapping[str, Floats]]]] = [
        ("control", controls),
        ("ceiling", ceilings or {}),
    ]
    rows = [Predictor(MODEL, "model", dict(predicted), in_points=True)]
    rows += [
        Predictor(name, kind, dict(columns), in_points=True)
        for kind, given in kinds
        for name, columns in given.items()
    ]
    rows += [Predictor(name, "baseline", any_target=column) for name, column in baselines.items()]
    return [*rows, Predictor(STACK, "baseline", dict(stacked))] if stacked else rows


def head_matrix(
    table: AnswerTable,
    targets: Mapping[str, Floats],
    predicted: Mapping[str, Floats],
    bootstrap: DocumentBootstrap,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Output → target → within-prompt Spearman: whether each output follows its own dimension most.

    Judge dimensions are correlated, so off-diagonal figures are not zero; an output that follows another dimension
    better than its own has not been told apart from it.
    """
    return {
        output: {
            target: bootstrap.ratio(prompt_metrics(table, column, scores)["spearman"]).as_json()
            for target, column in targets.items()
            if target != REWARD
        }
        for output, scores in predicted.items()
        if output != REWARD
    }


def summary_figures(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Target → the model's own row's figures, for a model card or a learning curve."""
    return {
        result["target"]: {**row["within"], **{f"set_{k}": v for k, v in row.get("over_set", {}).items()}}
        for result in found["results"]
        for row in result["rows"]
        if row["kind"] == "model"
    }
