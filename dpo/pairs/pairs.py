"""`dpo pairs`: scored answers to preference pairs in TRL's format (LongReward, section 4.1).

In: prompts whose responses carry rewards (`reward-model score`, or a label run through `--labels`). Out: a file
that `load_dataset` reads and stock TRL trains on, and `<output>.report.json` with what was dropped and why, the
margins, the lengths of chosen against rejected, and how often each dimension decides.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from dpo.judged import as_judged
from dpo.pairs.certainty import measure
from dpo.pairs.choice import EXCLUDING_FLAGS, Rules, choose, task_of
from dpo.pairs.pairs_config import PairsConfig, RewardsOf
from dpo.pairs.report import pair_report, print_report
from dpo.pairs.rows import even, mixed_in, to_row
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import labels_by_answer, read_prompts, write_json, write_records
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import check_place, prepare_run
from judge_pipeline.common.weighting import full_weights


def read_task_weights(path: Path | None) -> dict[str, dict[str, float]]:
    """Task → dimension → weight from a YAML or JSON file."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"--task-weights: {path} is not there") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--task-weights: {path} is not readable: {error}") from error
    try:
        return {str(task): {str(k): float(v) for k, v in row.items()} for task, row in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"--task-weights: {path} is not task → dimension → weight", "summary:\n  faithfulness: 2"
        ) from error


def check_weights_used(rules: Rules, dimensions: set[str], tasks: set[str | None]) -> None:
    """Refuse weights of dimensions that no answer has a score of (see `full_weights`); warn of tasks no prompt has."""
    by_task = {f"--task-weights, task '{task}'": row for task, row in rules.task_weights.items()}
    for flag, weights in {"--weights": rules.config.weights, **by_task}.items():
        full_weights(weights, sorted(dimensions), "no answer has a score of '{name}'", flag)
    for task in sorted(rules.task_weights.keys() - tasks):
        print(f"warning: --task-weights: no prompt has the task '{task}'", file=sys.stderr)


def with_labels(prompts: Iterator[Prompt], path: Path | None) -> Iterator[tuple[Prompt, RewardsOf]]:
    """Each prompt with a label run's scores and rewards where the run gives it any, else with its own.

    The judge labels a part of the prompts and the reward model the rest. Within a prompt the two are never mixed:
    a pair compares rewards of one rater.
    """
    labels = {} if path is None else labels_by_answer(path)
    judged = {name for (name, _), label in labels.items() if label.reward is not None}
    for prompt in prompts:
        if prompt.id in judged:
            responses = [as_judged(item, labels.get((prompt.id, item.id))) for item in prompt.responses]
            yield prompt.model_copy(update={"responses": responses}), "labels"
        else:
            yield prompt, "file"


def input_files(config: PairsConfig) -> list[Path]:
    """The files that are read; their content decides whether an earlier output is this run's."""
    runs = (path for path in (config.labels, config.sure_labels) if path)
    files = [path / "labels.jsonl" if path.is_dir() else path for path in runs]
    return [config.scored, *files, *(path for path in (config.mix, config.task_weights) if path)]


def run(config: PairsConfig) -> int:
    """Make pairs; an input that gives none is an error that says why."""
    inputs = input_files(config)
    run_file = Path(f"{config.output}.run.yaml")
    check_place(config.output, run_file, inputs)
    rules = Rules(config, read_task_weights(config.task_weights))
    certainty = None
    if config.sureness is not None and (labels := config.sure_labels or config.labels) is not None:
        certainty = measure(config.scored, labels, rules)
        rules = replace(rules, sure_margin=certainty.margin(config.sureness))
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    dimensions: set[str] = set()
    tasks: set[str | None] = set()
    for prompt, rewards_of in with_labels(read_prompts(config.scored, need_responses=True), config.labels):
        dimensions.update(name for response in prompt.responses for name in response.scores or {})
        tasks.add(task_of(prompt))
        choices = choose(prompt, rules, counts, rewards_of)
        rows += [to_row(prompt, choice, config.arm, rewards_of) for choice in choices]
    check_weights_used(rules, dimensions, tasks)
    if not rows:
        reasons = "\n  ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
        raise UserError(
            f"{config.scored} gives no pair:\n  {reasons}",
            "rewards come from `reward-model score`; see --min-responses, --min-margin and --keep-flagged "
            f"({', '.join(EXCLUDING_FLAGS)} are left out)",
        )
    report = pair_report(rows, [rules.weights(row["task"]) for row in rows], counts)
    if certainty is not None:
        report["certainty"] = {**asdict(certainty), "least_margin": rules.sure_margin}
        for row in rows:
            sure = row["rewards_of"] == "file"
            row["order_probability"] = certainty.probability(row["margin"]) if sure else None
    rows = mixed_in(rows, config)
    report["pairs_written"] = len(rows)
    report["pairs_mixed_in"] = sum(row["arm"] == "mix" for row in rows)
    # Not before there are pairs: a run that ends in an error replaces nothing.
    prepare_run(config.output, config, "dpo pairs", config.existing, inputs, run_file=run_file)
    write_records(config.output, even(rows))
    report_path = Path(f"{config.output}.report.json")
    write_json(report_path, report)
    print_report(report, config.output, report_path, sys.stdout)
    return 0
