"""`judge-pipeline evaluate`: does a judge, or anything that scored the answers, agree with people?

In: scores (a label run, or a file of scored prompts) and people's values (`human`, `preferences`, in prompt records).
Out: `agreement.json`, `agreement.md`, `report.html`, `weights.yaml` and a table in the terminal: agreement by dimension,
data set and context length with intervals over documents, beside baselines that cost nothing; what each dimension
adds; the weights people's choices imply; and, when asked for, the judge baselines of LongReward's section 4.4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from judge_pipeline.calls.store import STORE_FILES, holds_calls
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import write_text
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.common.run_lock import locked
from judge_pipeline.common.weighting import resolve_weighting, weighted_reward
from judge_pipeline.engines.limits import PENDING
from judge_pipeline.evaluation.asking import Baselines, ask_baselines, check_asking, dry_run
from judge_pipeline.evaluation.evaluate_config import EvaluateConfig
from judge_pipeline.evaluation.inputs import ScoredAnswers, read_scored
from judge_pipeline.evaluation.report import evaluation_page, terminal_report
from judge_pipeline.evaluation.several import Columns, between_judges, read_judges
from judge_pipeline.statistics import render
from judge_pipeline.statistics.agreement import decided_pairs
from judge_pipeline.statistics.baselines import all_baselines, minilm_embed
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.compare import PREFERENCES, Comparison, Predictor
from judge_pipeline.statistics.raters import rater_values, repeated_preferences, self_agreement, vote_values
from judge_pipeline.statistics.table import (
    OVERALL,
    REWARD,
    AnswerTable,
    Floats,
    Pair,
    score_columns,
    score_names,
)
from judge_pipeline.statistics.weights_fit import MIN_PAIRS, fitted_weights, leave_one_out, pair_data

WEIGHTS = "weights.yaml"
"""Fitted weights by data set or task, as `dpo pairs --task-weights` takes them; `all` are those of all pairs."""


def evaluate_human(
    scored: ScoredAnswers,
    name: str = "judge",
    more: list[Predictor] | None = None,
    baselines: dict[str, Floats] | None = None,
    judges: Mapping[str, Columns] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The whole evaluation as plain data.

    `more` are further predictors (pairwise judge, short-context RM, …), `judges` further judges beside the first.
    """
    table = scored.table
    people = judged_by_people(table)
    bootstrap = DocumentBootstrap(table.document_P, replicates, seed)
    predictors = [Predictor(name, "model", scored.columns, in_points=True)] if scored.columns else []
    further = judges or {}
    predictors += [Predictor(label, "judge", dict(given), in_points=True) for label, given in further.items()]
    predictors += more or []
    predictors += [Predictor(label, "baseline", any_target=x) for label, x in (baselines or {}).items()]
    comparison = Comparison(table, predictors, bootstrap)
    results = [comparison.graded(target, column) for target, column in people.ratings.items()]
    if people.preferences:
        results.append(comparison.preferred(people.preferences))
    return {
        "prompts": len(table.prompts),
        "answers": table.rows,
        "documents": table.documents,
        "notes": [*scored.notes, *filter(None, [render.few_documents(table.documents)])],
        "results": results,
        "pairs_from": people.pairs_from,
        "dimensions": _dimensions(scored, people.pairs, bootstrap),
        "raters": _raters(scored, bootstrap),
        "between": between_judges(table, {name: scored.columns, **further}, bootstrap),
    }


@dataclass(frozen=True)
class PeoplesJudgements:
    """What people said of a table's answers."""

    ratings: dict[str, Floats]
    preferences: list[Pair]
    pairs: list[Pair]
    """Pairs of answers that people tell apart as wholes."""
    pairs_from: str
    """What `pairs` was taken from."""


def judged_by_people(table: AnswerTable) -> PeoplesJudgements:
    """People's ratings and preferences. Raises UserError where there are none."""
    ratings = score_columns(table, score_names(table, "human"), "human")
    preferences = table.preferences()
    if preferences:
        return PeoplesJudgements(ratings, preferences, preferences, PREFERENCES)
    if not ratings:
        raise UserError(
            "the prompts hold no judgement by people: every `human` value is null and there are no `preferences`",
            "name prompts that people judged: --prompts FILE",
        )
    if OVERALL in ratings:
        return PeoplesJudgements(ratings, [], decided_pairs(table, ratings[OVERALL]), OVERALL)
    known = [column for column in ratings.values() if np.isfinite(column).any()]
    pairs = decided_pairs(table, np.mean(known, axis=0))
    return PeoplesJudgements(ratings, [], pairs, "mean of people's " + ", ".join(ratings))


def _dimensions(scored: ScoredAnswers, pairs: list[Pair], bootstrap: DocumentBootstrap) -> dict[str, Any]:
    """What each dimension adds, and fitted weights: for all prompts, and for each data set or task."""
    if not scored.dimensions:
        return {}
    table = scored.table
    columns = {name: scored.columns[name] for name in scored.dimensions}
    names = dict.fromkeys(table.group_P)
    parts = {"all": pairs}
    if len(names) > 1:
        parts |= {name: [pair for pair in pairs if table.group_P[pair.prompt] == name] for name in names}
    found: dict[str, Any] = {}
    for part, chosen in parts.items():
        data = pair_data(table, chosen, columns)
        if not len(data.gaps):
            continue
        found[part] = {
            "pairs": len(data.gaps),
            "leave_one_out": leave_one_out(table, data, bootstrap),
            "weights": fitted_weights(table, data, bootstrap),
            "min_pairs": MIN_PAIRS,
        }
    return found


def _raters(scored: ScoredAnswers, bootstrap: DocumentBootstrap) -> dict[str, Any]:
    """How far people, and the judge's votes, agree with themselves."""
    table = scored.table
    values = {"people": rater_values(table), "judge": vote_values(table, scored.labels)}
    found: dict[str, dict[str, Any]] = {
        source: {name: self_agreement(table, rows, bootstrap) for name, rows in ratings.items()}
        for source, ratings in values.items()
    }
    found["people"][PREFERENCES] = repeated_preferences(table, bootstrap)
    kept = {source: {n: x for n, x in rows.items() if x is not None} for source, rows in found.items()}
    return {source: rows for source, rows in kept.items() if rows}


def reweigh(scored: ScoredAnswers, weights: dict[str, float]) -> None:
    """Replace the reward by the weighted mean that `weights` asks for; dimensions not named keep weight 1."""
    full = resolve_weighting(weights, scored.dimensions, "null").weights
    rows = np.stack([scored.columns[name] for name in scored.dimensions], axis=1).tolist()
    rewards = [
        weighted_reward({name: None if np.isnan(x) else x for name, x in zip(full, row, strict=True)}, full)
        for row in rows
    ]
    scored.columns[REWARD] = np.array(rewards, dtype=float)  # None becomes NaN


def run_evaluation(config: EvaluateConfig) -> int:
    """Evaluate and write the files. Exit code 0; 3 when a limit left calls out, 4 when batch files are awaited."""
    check_asking(config)
    scored = read_scored(config.scored, config.prompts)
    if config.weights:
        reweigh(scored, config.weights)
    judges, notes = read_judges(scored.table, config.judges)
    scored.notes += notes
    if config.name in judges:
        raise UserError(
            f"--judges names a judge '{config.name}', as SCORED is called", "call it otherwise: --name"
        )
    asks = config.pairwise_judge or config.holistic
    pairs = judged_by_people(scored.table).pairs if config.pairwise_judge else None
    if config.dry_run and config.calibrate is None:
        dry_run(config, scored.table, pairs)
        return 0
    with locked(config.output):
        files = [path for path in (config.scored, *config.prompts, *config.judges.values()) if path.is_file()]
        idle = () if holds_calls(config.output / "calls.sqlite") else STORE_FILES
        prepare_run(config.output, config, "judge-pipeline evaluate", config.existing, files, idle=idle)
        if config.dry_run:
            dry_run(config, scored.table, pairs)
            return 0
        asked = ask_baselines(config, scored.table, pairs) if asks else Baselines()
        if asked.exit_code == PENDING:
            return PENDING
        scored.notes += asked.notes
        _evaluate(config, scored, judges, asked)
    return asked.exit_code


def _evaluate(
    config: EvaluateConfig, scored: ScoredAnswers, judges: Mapping[str, Columns], asked: Baselines
) -> None:
    """Compute, write, print."""
    more: list[Predictor] = []
    if config.short_rm is not None:
        from judge_pipeline.evaluation.short_context_rm import ShortContextRM

        scores = ShortContextRM(config.short_rm).score_table(scored.table)
        more.append(Predictor("short-context RM", "baseline", any_target=scores))
    more += asked.predictors
    embed = None if config.embedding_model == "none" else minilm_embed(config.embedding_model)
    baselines = all_baselines(scored.table, embed, config.seed)
    found = evaluate_human(scored, config.name, more, baselines, judges, config.bootstrap, config.seed)
    found["judge_baselines"] = asked.summary
    write_evaluation(config.output, found, config.name if scored.columns else "baselines")
    print(terminal_report(found))
    print(f"\nwritten: {config.output / 'agreement.json'}, agreement.md and report.html beside it")


def write_evaluation(output: Path, found: dict[str, Any], name: str) -> None:
    """Write agreement.json, agreement.md, report.html and, where weights could be fitted, `weights.yaml`."""
    write_text(output / "agreement.json", json.dumps(found, indent=1, ensure_ascii=False))
    tables = [render.markdown_table(result) for result in found["results"]]
    write_text(output / "agreement.md", "\n\n".join(tables) + "\n")
    fitted = {part: row["weights"]["weights"] for part, row in found["dimensions"].items() if row["weights"]}
    if fitted:
        write_text(output / WEIGHTS, yaml.safe_dump(fitted, sort_keys=False, allow_unicode=True))
    write_text(output / "report.html", evaluation_page(found, name))
