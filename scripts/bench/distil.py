"""Is anything distilled? Probes on a frozen base model against the judge's labels they never saw, by folds over documents.

Each output against the judge (within-prompt Spearman, pairs in order), the reward against people's choices beside the
judge's own reward, every baseline that costs nothing and a ridge of all of them, the same model with its document
withheld and with another in its place, narrower readouts, fewer prompts; differences are paired over documents.

    python scripts/bench/distil.py --data DIR [--work runs/distil] [--base-model smollm2 PATH …] [--only qa]

`DIR` holds qa_feedback_judged.jsonl, qa_feedback.jsonl, demo_labels.jsonl and demo_prompts.jsonl; no text of theirs is
written anywhere. What was read is kept in the work folder, a file a prompt. Writes distil.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from judge_pipeline.common.record_files import read_labels
from judge_pipeline.common.records import DIMENSIONS
from judge_pipeline.statistics.compare import PREFERENCES
from judge_pipeline.statistics.stack import graded_rows, out_of_fold
from judge_pipeline.statistics.table import REWARD, Floats
from reward_model.fidelity.free_baselines import STACK, stack_features, stacked_baselines
from scripts.bench.distil_cost import judge_cost, model_cost
from scripts.bench.distil_data import (
    Material,
    free_baselines,
    likelihood,
    load_frozen,
    load_material,
    stores_of,
)
from scripts.bench.distil_figures import Ruler, with_reward
from scripts.bench.distil_fit import (
    CONTROLS,
    HALF,
    NARROW,
    PLAIN,
    PROBE,
    REFITTED,
    Folded,
    load_store,
    run_folds,
)
from scripts.bench.distil_tables import JUDGE, STACKED, aims, tables
from scripts.bench.evidence_common import command_line, environment, write_result

FILES = {
    "qa": ("qa_feedback_judged.jsonl", "qa_feedback.jsonl"),
    "demo": ("demo_labels.jsonl", "demo_prompts.jsonl"),
}


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/distil"))
    parser.add_argument("--base-model", nargs="+", default=["smollm2"], help="name or path; each is measured")
    parser.add_argument("--only", nargs="+", choices=[*FILES, "read"], default=list(FILES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the folds")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[10, 40], help="training prompts of ablations"
    )
    parser.add_argument("--layer-step", type=int, default=3, help="1 lets the probe choose from every layer")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


@dataclass(frozen=True)
class Columns:
    """Columns of one set by scorer: one column a target and seed."""

    baselines: Mapping[str, Floats]
    stacks: Sequence[Mapping[str, Floats]]
    folded: Sequence[Folded]

    def model(self, scorer: str) -> list[dict[str, Floats]]:
        """A scorer's outputs and reward, seed by seed."""
        return [with_reward(one.points[scorer]) for one in self.folded if scorer in one.points]


def stacked_with_probe(
    material: Material, columns: Columns, targets: Mapping[str, Floats], seeds: Sequence[int]
) -> list[dict[str, Floats]]:
    """The ridge of all baselines with the probe's own output as one more column, out of fold, seed by seed."""
    found = []
    for seed, points in zip(seeds, columns.model(PROBE), strict=True):
        one = {}
        for name, target in targets.items():
            features = {**stack_features(columns.baselines), PROBE: points[name]}
            fitted = out_of_fold(
                material.table, features, graded_rows(material.table, features, target), seed=seed
            )
            assert fitted is not None
            one[name] = fitted
        found.append(one)
    return found


def measure_scores(material: Material, columns: Columns, seeds: Sequence[int]) -> dict[str, Any]:
    """Every scorer against judge and people."""
    targets = with_reward(material.targets)
    ruler = Ruler(material.table, targets)
    scorers = dict.fromkeys(name for one in columns.folded for name in one.points)
    models = {name: columns.model(name) for name in scorers}
    models[STACKED] = stacked_with_probe(material, columns, targets, seeds)
    for target in targets:
        for name, column in columns.baselines.items():
            ruler.add(target, name, [column])
        ruler.add(target, STACK, [stack[target] for stack in columns.stacks])
        for name, seeds_of in models.items():
            ruler.add(target, name, [one[target] for one in seeds_of])
    found: dict[str, Any] = {"targets": {}}
    for target in targets:
        best = ruler.best(target, list(columns.baselines))
        against = [best, STACK, PLAIN, HALF, *CONTROLS.values(), *NARROW, *REFITTED]
        there = [name for name in against if name in ruler.ratios[target]]
        found["targets"][target] = {
            "best_free_baseline": best,
            "rows": ruler.rows(target),
            "probe_minus": {name: ruler.difference(target, PROBE, name) for name in there},
            "stacked_minus": {name: ruler.difference(target, STACKED, name) for name in (best, STACK)},
        }
    found["together"] = {
        name: ruler.together([{key: one[key] for key in material.dimensions} for one in models[name]])
        for name in (PROBE, PLAIN, CONTROLS["alone"], *REFITTED)
        if name in models
    }
    if material.table.preferences():
        found[PREFERENCES] = preferences(ruler, columns, models, targets)
    return found


def preferences(
    ruler: Ruler,
    columns: Columns,
    models: Mapping[str, Sequence[Mapping[str, Floats]]],
    targets: Mapping[str, Floats],
) -> dict[str, Any]:
    """People's choices: judge, models and baselines; the ridge of all baselines also fitted to the choices themselves."""
    ruler.add_preferences(JUDGE, [targets[REWARD]])
    for name, column in columns.baselines.items():
        ruler.add_preferences(name, [column])
    ruler.add_preferences(f"{STACK}, fitted to the judge", [stack[REWARD] for stack in columns.stacks])
    ruler.add_preferences(f"{STACK}, fitted to people", [stack[PREFERENCES] for stack in columns.stacks])
    for name, seeds_of in models.items():
        ruler.add_preferences(name, [one[REWARD] for one in seeds_of])
    best = ruler.best(PREFERENCES, list(columns.baselines), "pairs")
    against = [JUDGE, best, f"{STACK}, fitted to people", CONTROLS["withheld"], CONTROLS["alone"]]
    return {
        "pairs": len(ruler.table.preferences()),
        "best_free_baseline": best,
        "rows": ruler.rows(PREFERENCES),
        "probe_minus": {name: ruler.difference(PREFERENCES, PROBE, name, "pairs") for name in against},
        "stacked_minus": {JUDGE: ruler.difference(PREFERENCES, STACKED, JUDGE, "pairs")},
    }


def measure_set(args: argparse.Namespace, name: str, base_model: str) -> dict[str, Any]:
    """One set with one base model: read what is missing, fit, measure."""
    labels, prompts = (args.data / file for file in FILES[name])
    material = load_material(name, labels, prompts, dimensions=DIMENSIONS)
    folder = args.work / Path(base_model).name / name
    backbone = load_frozen(base_model, DIMENSIONS)
    stores = stores_of(material, backbone, folder)
    stores.read(backbone.model)
    baselines = free_baselines(material, folder) | likelihood(stores)
    if args.only == ["read"]:
        return {}
    store = load_store(stores, args.layer_step)
    folded, started = [], time.process_time()
    for seed in args.seeds:
        folded.append(
            run_folds(
                material,
                store,
                stores.encoded,
                seed,
                folds=args.folds,
                sizes=args.sizes,
                ablations=name == "qa",
            )
        )
        print(f"{name}, seed {seed}: {', '.join(folded[-1].readouts)}", flush=True)
    targets = with_reward(material.targets)
    pairs = material.table.preferences()
    stacks = [stacked_baselines(material.table, baselines, targets, pairs, seed) for seed in args.seeds]
    found = measure_scores(material, Columns(baselines, stacks, folded), args.seeds)
    layers = [layer for one in folded for layer in one.layers]
    rows = list(read_labels(labels))
    return {
        "prompts": len(material.examples),
        "answers": material.table.rows,
        "documents": len(set(material.documents)),
        "readouts": [one.readouts for one in folded],
        **found,
        "cost": {
            "judge": judge_cost(rows),
            "model": model_cost(backbone.model, stores.encoded, int(np.median(layers))),
        },
        "fit_cpu_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    """Every set with every base model."""
    args = arguments()
    names = list(FILES) if args.only == ["read"] else [name for name in args.only if name in FILES]
    result: dict[str, Any] = (
        json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {"models": {}}
    )
    for base_model in args.base_model:
        for name in names:
            found = measure_set(args, name, base_model)
            if not found:
                continue
            found["settings"] = {
                "seeds": args.seeds,
                "folds": args.folds,
                "layer_step": args.layer_step,
                **environment(),
            }
            result["models"].setdefault(Path(base_model).name, {})[name] = found
            result["aims"] = aims(result["models"])
            write_result(args.output, result)  # after every set: a run that is stopped leaves what it has
    print(tables(result))


if __name__ == "__main__":
    main()
