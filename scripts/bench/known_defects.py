"""Labels known by construction: does each output of a reward model find the defect that is its own?

Human answers over extracts of stories are made worse on purpose (`degrade`), one dimension at a time and in three
strengths, at nearly the same length. A reward model is trained on some stories and measured on others: within-prompt
Spearman per dimension with intervals over stories, beside every baseline both ways round, and a table of which output
answers to which defect. Several sizes of the training set give the learning curve.

    python scripts/bench/known_defects.py --data DIR [--base-model smollm2] [--sizes 20 80] [--work runs/known-defects]

`DIR` holds `squality_stories.jsonl.gz` (SQuALITY v1.3 in prompt records). Writes known_defects.json beside this file.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS, Label, Prompt
from judge_pipeline.statistics.agreement import prompt_metrics
from judge_pipeline.statistics.baselines import all_baselines, minilm_embed
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.render import interval, markdown
from judge_pipeline.statistics.table import REWARD, AnswerTable, Floats, build_table
from reward_model.data.splits import hash_fraction
from reward_model.fidelity.fidelity import evaluate_scores
from reward_model.fidelity.inputs import model_columns
from reward_model.scoring.scorer import RewardModel
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig
from scripts.bench.degrade import STRENGTHS, build_set
from scripts.bench.evidence_common import command_line, environment, settings_of, write_result

TRAINING = ("freeze_layers", "head_init", "precision", "epochs", "learning_rate", "token_budget", "seed")
"""Settings handed on to training."""


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of squality_stories.jsonl.gz")
    parser.add_argument("--base-model", default="smollm2")
    parser.add_argument("--work", type=Path, default=Path("runs/known-defects"))
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[20, 80], help="training prompts, nested sets"
    )
    parser.add_argument("--test-prompts", type=int, default=20)
    parser.add_argument(
        "--answers", type=int, default=5, help="answers a training prompt, the undamaged included"
    )
    parser.add_argument("--budget", type=int, default=350, help="words of a story's extract")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--freeze-layers", type=int, default=15)
    parser.add_argument("--head-init", default="auto", choices=["auto", "mean", "probe"])
    parser.add_argument("--precision", default="fp32", choices=["bf16", "fp32", "auto"])
    parser.add_argument("--token-budget", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple[list[Prompt], list[Prompt], dict[tuple[str, str], Label]]:
    """(training prompts in the order of the nested sets, test prompts, labels); no story on both sides."""
    stories: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in read_prompts(args.data / "squality_stories.jsonl.gz"):
        stories[prompt.document_id].append(prompt)
    prompts, labels = build_set(stories, args.seed, args.budget)
    held = {name for name in stories if hash_fraction(name, args.seed) < 0.25}
    order = sorted(prompts, key=lambda prompt: hash_fraction(prompt.id, args.seed + 1))
    test = [prompt for prompt in order if prompt.document_id in held][: args.test_prompts]
    rest = [prompt for prompt in order if prompt.document_id not in held]
    by_key = {(label.prompt_id, label.response_id): label for label in labels}
    return [thin(prompt, args.answers, args.seed) for prompt in rest], test, by_key


def thin(prompt: Prompt, answers: int, seed: int) -> Prompt:
    """Some answers of a training prompt: the undamaged one, one of each defect, and others at random."""
    rng = random.Random(f"{seed}:{prompt.id}")
    by_source = {response.source: response for response in prompt.responses}
    chosen = ["none-0", *(f"{name}-{rng.choice(STRENGTHS)}" for name in DIMENSIONS)]
    rest = sorted(name for name in by_source if name is not None and name not in chosen)
    chosen += rng.sample(rest, max(0, min(len(rest), answers - len(chosen))))
    kept = [response for response in prompt.responses if response.source in chosen[:answers]]
    return prompt.model_copy(update={"responses": kept})


def train_on(args: argparse.Namespace, prompts: list[Prompt], labels: dict[tuple[str, str], Label]) -> Path:
    """Train on these prompts; an earlier finished run is used again."""
    folder: Path = args.work / f"size-{len(prompts)}"
    write_records(folder / "prompts.jsonl", prompts)
    keys = [(prompt.id, response.id) for prompt in prompts for response in prompt.responses]
    write_records(folder / "labels.jsonl", (labels[key] for key in keys))
    settings = TrainConfig.model_validate(
        {
            "labels": folder / "labels.jsonl",
            "prompts": folder / "prompts.jsonl",
            "base_model": args.base_model,
            "output": folder / "model",
            "existing": "resume",
            "eval_fraction": 0.0,
            "method": "full",
            "device": "auto" if torch.cuda.is_available() else "cpu",
            "loss": "regression+pairwise",
            **{name: getattr(args, name) for name in TRAINING},
        }
    )
    if not (settings.output / "reward_model.json").is_file():
        train(settings)
    return settings.output


def defect_matrix(
    table: AnswerTable, columns: dict[str, Floats], bootstrap: DocumentBootstrap
) -> dict[str, dict[str, Any]]:
    """Scorer → defect → within-prompt Spearman with the defect's strength, over the undamaged answer and that series."""
    sources = [response.source or "" for prompt in table.prompts for response in prompt.responses]
    found: dict[str, dict[str, Any]] = {name: {} for name in columns}
    for defect in DIMENSIONS:
        target = np.full(table.rows, np.nan)
        for row, source in enumerate(sources):
            kind, strength = source.rsplit("-", 1)
            if kind in (defect, "none"):
                target[row] = 10.0 - 3.0 * int(strength)
        for name, column in columns.items():
            ratio = prompt_metrics(table, target, column)["spearman"]
            found[name][defect] = bootstrap.ratio(ratio).as_json()
    return found


def measure(
    args: argparse.Namespace,
    model_dir: Path,
    table: AnswerTable,
    labels: dict[tuple[str, str], Label],
    baselines: dict[str, Floats],
) -> dict[str, Any]:
    """Fidelity on unseen stories and the output × defect table."""
    predicted = model_columns(RewardModel.from_pretrained(model_dir), table, 16384)
    targets = {name: table.from_labels(labels, name) for name in [*DIMENSIONS, REWARD]}
    found = evaluate_scores(table, targets, predicted, baselines=baselines, seed=args.seed)
    bootstrap = DocumentBootstrap(table.document_P, 1000, args.seed)
    outputs = {name: predicted[name] for name in DIMENSIONS}
    return {
        "fidelity": found,
        "outputs": defect_matrix(table, outputs, bootstrap),
        "baselines": defect_matrix(table, baselines, bootstrap),
        "best_baselines": against_best(found),
    }


def against_best(found: dict[str, Any]) -> dict[str, Any]:
    """Dimension → the strongest baseline and how far the model's output is ahead of it, on the same stories."""
    summary = {}
    for result in found["results"]:
        rows = [row for row in result["rows"] if row["kind"] == "baseline"]
        best = max(rows, key=lambda row: row["within"]["spearman"]["value"])
        model = next(row for row in result["rows"] if row["kind"] == "model")
        ahead = best["ahead"]["spearman"]
        apart = (model["within"]["spearman"]["low"] or -1) > (best["within"]["spearman"]["high"] or 1)
        summary[result["target"]] = {
            "model": model["within"]["spearman"],
            "best_baseline": best["name"],
            "baseline": best["within"]["spearman"],
            "ahead": ahead,
            "intervals_apart": apart,
            "ahead_beyond_interval": ahead["low"] is not None and ahead["low"] > 0,
        }
    return summary


def both_ways(baselines: dict[str, Floats]) -> dict[str, Floats]:
    """Every baseline and its reverse: a rule that is right upside down would be found by anyone who looks."""
    names = {"bigram support", "question similarity", "evidence similarity"} & baselines.keys()
    return baselines | {f"{name}, reversed": -baselines[name] for name in sorted(names)}


def length_ratio(prompts: list[Prompt]) -> dict[str, float]:
    """Mean length of each kind of damaged answer, relative to the undamaged one."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for prompt in prompts:
        whole = next(item.text for item in prompt.responses if item.source == "none-0")
        for item in prompt.responses:
            ratios[item.source or ""].append(len(item.text) / len(whole))
    return {name: float(np.mean(values)) for name, values in sorted(ratios.items())}


def tables(steps: list[dict[str, Any]]) -> str:
    """Markdown: model against the best baseline, output × defect, learning curve."""
    last = steps[-1]
    rows = []
    for target, row in last["best_baselines"].items():
        model, baseline, ahead = (interval(row[name], 2) for name in ("model", "baseline", "ahead"))
        apart = "yes" if row["intervals_apart"] else "no"
        rows.append([target, model, row["best_baseline"], baseline, ahead, apart])
    heads = ["target", "model", "best baseline", "its Spearman", "ahead", "intervals apart"]
    parts = [markdown(heads, rows)]
    matrix = {**last["outputs"], **last["baselines"]}
    rows = [[name, *(interval(row[defect], 2) for defect in DIMENSIONS)] for name, row in matrix.items()]
    parts.append(markdown(["scored by \\ defect", *DIMENSIONS], rows))
    curve = {str(step["size"]): step["best_baselines"].values() for step in steps}
    rows = [[size, *(interval(row["model"], 2) for row in results)] for size, results in curve.items()]
    parts.append(markdown(["training prompts", *last["best_baselines"]], rows))
    return "\n\n".join(parts)


def main() -> None:
    """Build, train every size, measure, write."""
    args = arguments()
    started = time.time()
    training, test, labels = build(args)
    table = build_table(test)
    baselines = both_ways(all_baselines(table, minilm_embed(), args.seed))
    steps = []
    for size in sorted(size for size in args.sizes if size <= len(training)):
        begun = time.time()
        model_dir = train_on(args, training[:size], labels)
        step = measure(args, model_dir, table, labels, baselines)
        steps.append({"size": size, "seconds": time.time() - begun, **step})
        print(f"size {size}: {time.time() - begun:.0f} s\n{tables(steps)}", flush=True)
        result = {
            "settings": settings_of(args, "data", "work", "output"),
            "training_prompts_available": len(training),
            "test": {"prompts": len(test), "answers": table.rows, "stories": table.documents},
            "length_ratio": length_ratio(test),
            "steps": steps,
            "seconds": time.time() - started,
            **environment(),
        }
        # After every size: a long run that is stopped leaves what it has measured.
        write_result(args.output, result)
        (args.work / "tables.md").write_text(tables(steps) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
