"""A stack: what free baselines add to a model's outputs, in points.

In: a model's outputs and the baselines of the same answers. Out: points. Fitted on training documents only (the model's
outputs there are those of fits that did not see the document), penalty by folds over documents, and kept only for the
outputs where it orders more within-prompt pairs right out of fold, by more than chance. Weights are fitted to points as they are, not to what
differs within prompts: on 160 judged prompts that ordered as well and kept errors in points lower (faithfulness 1.20
against 1.29). Lies in the manifest, as names and weights; scores of an answer depend on no other answer. The outputs of a plain checkpoint never hold it.

Shape suffixes: N answers, B baselines, D outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from judge_pipeline.common.bundled_models import MINILM
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import Prompt, Response
from judge_pipeline.statistics.agreement import prompt_metrics
from judge_pipeline.statistics.baselines import Embed, all_baselines, minilm_embed
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.stack import fit_stack, levelled_rows, out_of_fold
from judge_pipeline.statistics.table import AnswerTable, Floats, build_table
from reward_model.modeling.stack_spec import OUTPUT, StackedOutput, StackSpec

LOG_LENGTH = "log length"
TEXT_BASELINES = ("bigram support", "longer answer", LOG_LENGTH)
EMBEDDED = ("question similarity", "evidence similarity")
NOTHING = "–"
LEVEL = 0.8
"""Baselines are kept where the paired interval of their gain at this level lies above zero: one chance in ten that a
gain of nothing does."""


def one_prompt(name: str, document: str, context: str, query: str, responses: Sequence[str]) -> Prompt:
    """Texts as a record, which demands a document (a dash, without words, where it is withheld) and marks empty answers."""
    answers = [
        Response(id=str(number), text=text, flags=[] if text.strip() else ["empty"])
        for number, text in enumerate(responses)
    ]
    context, query = (text if text.strip() else NOTHING for text in (context, query))
    return Prompt(id=name, document_id=document, context=context, query=query, responses=answers)


@cache
def _embed(model: str) -> Embed:
    return minilm_embed(model)


def stack_embedding() -> str | None:
    """The embedding model of a new stack; None where it is not installed."""
    try:
        _embed(MINILM)
    except UserError:
        return None
    return MINILM


def baseline_columns(table: AnswerTable, embedding_model: str | None) -> dict[str, Floats]:
    """The baselines a stack may use, by name (R,)."""
    found = all_baselines(table, _embed(embedding_model) if embedding_model else None)
    found[LOG_LENGTH] = np.log1p(found["longer answer"])
    return {name: found[name] for name in (*TEXT_BASELINES, *(EMBEDDED if embedding_model else ()))}


def read_baselines(spec: StackSpec, context: str, query: str, responses: Sequence[str]) -> Floats:
    """The baselines (N, B) of the answers to one prompt that a stack adds."""
    table = build_table([one_prompt("p", "d", context, query, responses)])
    columns = baseline_columns(table, spec.embedding_model)
    return np.stack([columns[name] for name in spec.baselines], axis=1)


def fit_spec(
    table: AnswerTable,
    outputs: Mapping[str, Floats],
    targets: Mapping[str, Floats],
    embedding_model: str | None = None,
    seed: int = 0,
) -> StackSpec:
    """Fit a stack to training answers.

    Args:
        table: the answers, R of them.
        outputs: name → the model's points (R,), each from a fit that did not see the answer's document.
        targets: name → labels (R,), NaN where there is none.
        embedding_model: of the similarities; None leaves them out.
        seed: of the folds.
    """
    baselines = baseline_columns(table, embedding_model)
    bootstrap = DocumentBootstrap(table.document_P, seed=seed, level=LEVEL)
    spec = StackSpec(baselines=list(baselines), embedding_model=embedding_model)
    for name, target in targets.items():
        known = np.isfinite(target)
        if not known.any() or np.ptp(target[known]) == 0:
            continue
        columns = {f"{OUTPUT}{name}": outputs[name]} | baselines
        rows = levelled_rows(table, columns, target)
        honest = out_of_fold(table, columns, rows, seed=seed)
        if honest is None:
            continue
        alone, stacked = (
            prompt_metrics(table, target, scores)["pairs"] for scores in (outputs[name], honest)
        )
        gain = bootstrap.difference(stacked, alone)
        if gain.low is None or gain.low <= 0:
            continue
        fitted = fit_stack(rows, list(columns))
        weights = dict(zip(fitted.names, fitted.weight.tolist(), strict=True))
        level = np.nanmean(target[known] - fitted.apply(columns)[known])
        shares = (alone.value or 0.0, stacked.value or 0.0)
        spec.outputs[name] = StackedOutput(weights=weights, constant=float(level), pairs=shares)
    return spec
