"""SummEdits (Laban et al., 2023): is a summary of a document consistent with it, when a few words are all that changed?

The probe's faithfulness on documents it never read, twice: trained on the judge's labels of other data (`transfer`:
qa_feedback_judged and demo_labels, nothing of SummEdits), and trained on a part of SummEdits' own documents by folds
(`own`). Balanced accuracy with a threshold from the other folds' documents, the same for baselines, and pairs within a
document. SummEdits is a benchmark: figures of `own` are of a model that was trained on a part of it.

    python scripts/bench/summedits.py --data DIR [--work runs/distil] [--edits 4]

Takes the features that distil.py has read from the work folder. Writes summedits.json beside this file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_curve

from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.render import interval, markdown
from judge_pipeline.statistics.table import Floats, Ints
from reward_model.data.batches import EncodedExample
from reward_model.data.splits import hash_fraction
from reward_model.fidelity.free_baselines import stacked_baselines
from reward_model.training.probe import fold_numbers
from scripts.bench.distil import FILES
from scripts.bench.distil_data import (
    Material,
    free_baselines,
    likelihood,
    load_frozen,
    load_material,
    stores_of,
)
from scripts.bench.distil_figures import Ruler
from scripts.bench.distil_fit import (
    CONTROLS,
    PROBE,
    MemoryStore,
    control_points,
    learn,
    load_store,
    run_folds,
)
from scripts.bench.evidence_common import command_line, environment, write_result

TARGET = "faithfulness"
STACK = "ridge of all baselines (own documents)"
PUBLISHED = {
    "people": 0.909,
    "GPT-4": 0.821,
    "Claude 2.1": 0.744,
    "QAFactEval": 0.655,
    "SummaCConv": 0.571,
}
"""Balanced accuracy, mean of ten domains of the whole set (the origin's README); other documents than ours."""


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/distil"))
    parser.add_argument("--base-model", default="smollm2")
    parser.add_argument(
        "--edits", type=int, default=4, help="of a document, half of them consistent where there are"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--layer-step", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def some_edits(source: Path, target: Path, edits: int) -> None:
    """A file in the work folder with some edits of each document, drawn by a hash, labels in turn."""
    prompts = []
    for prompt in read_prompts(source):
        sides: dict[bool, list[Any]] = {True: [], False: []}
        for response in sorted(prompt.responses, key=lambda one: hash_fraction(one.id, 0)):
            sides[((response.human or {}).get(TARGET) or 0.0) > 5].append(response)
        half = edits // 2
        short = min(half, len(sides[True])), min(half, len(sides[False]))
        kept = sides[True][: edits - short[1]] + sides[False][: edits - short[0]]
        prompts.append(prompt.model_copy(update={"responses": kept[:edits] if len(kept) > edits else kept}))
    write_records(target, prompts)


def joined(stores: Sequence[MemoryStore]) -> MemoryStore:
    """Several sets' features as one store."""
    layers = list(stores[0].layers)
    states = {layer: torch.cat([store.states_L[layer][:2] for store in stores], dim=1) for layer in layers}
    prompts = [prompt for store in stores for prompt in store.prompts]
    return MemoryStore(stores[0].folder, layers, prompts, states_L=states)


def transfer(args: argparse.Namespace, backbone: Any, store: MemoryStore) -> tuple[dict[str, Floats], str]:
    """Faithfulness of the probe and its control, trained on the judge's labels of other sets; what was chosen."""
    parts: list[MemoryStore] = []
    items: list[EncodedExample] = []
    documents: list[str] = []
    for name, files in FILES.items():
        labels, prompts = (args.data / file for file in files)
        material = load_material(name, labels, prompts, dimensions=DIMENSIONS)
        stores = stores_of(material, backbone, args.work / Path(args.base_model).name / name)
        parts.append(load_store(stores, args.layer_step, with_other=False))
        items += stores.encoded
        documents += [f"{name}:{document}" for document in material.documents]
    training, probe = learn(joined(parts), items, documents, 0)
    place = DIMENSIONS.index(TARGET)
    points = control_points(training, probe, store)
    return {name: values[:, place].double().numpy() for name, values in points.items()}, (
        probe.readout.spec.describe()
    )


def predicted_sides(values_R: Floats, good_R: np.ndarray, fold_R: Ints) -> np.ndarray:
    """Which answers are called consistent, by the threshold that is best on the other folds' documents."""
    found = np.zeros(len(values_R), dtype=bool)
    for fold in np.unique(fold_R):
        train = fold_R != fold
        wrong, right, thresholds = roc_curve(good_R[train], values_R[train])
        found[~train] = values_R[~train] >= thresholds[np.argmax(right - wrong)]
    return found


def accuracy(
    bootstrap: DocumentBootstrap, material: Material, good_R: np.ndarray, called: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Balanced accuracy, mean over seeds, with an interval over documents."""

    def compute(rows: Ints) -> float | None:
        if len(set(good_R[rows].tolist())) < 2:
            return None
        return float(np.mean([balanced_accuracy_score(good_R[rows], one[rows]) for one in called]))

    rows = np.arange(material.table.rows)
    return bootstrap.statistic(compute, material.table.document_R, rows, 200).as_json()


def measure(
    args: argparse.Namespace, material: Material, columns: Mapping[str, Sequence[Floats]]
) -> dict[str, Any]:
    """Balanced accuracy and pairs of every scorer, and paired leads over the best baseline in pairs."""
    target = material.targets[TARGET]
    good = target > 5
    ruler = Ruler(material.table, {TARGET: target})
    folds = [
        fold_numbers(list(material.documents), seed, args.folds).numpy()[material.table.prompt_R]
        for seed in args.seeds
    ]
    rows: dict[str, Any] = {}
    for name, own in columns.items():
        ruler.add(TARGET, name, own)
        several = own if len(own) == len(folds) else [own[0]] * len(folds)
        called = [predicted_sides(one, good, fold) for one, fold in zip(several, folds, strict=True)]
        rows[name] = {
            "balanced_accuracy": accuracy(ruler.bootstrap, material, good, called),
            "pairs": ruler.figure(TARGET, name, "pairs"),
        }
    free = [name for name in columns if not name.startswith(("transfer", "own"))]
    best = ruler.best(TARGET, [name for name in free if name != STACK], "pairs")
    leads = {
        f"{kind}: {PROBE}": {
            other: ruler.difference(TARGET, f"{kind}: {PROBE}", other, "pairs")
            for other in (
                best,
                STACK,
                *(f"{kind}: {name}" for name in (CONTROLS["withheld"], CONTROLS["alone"])),
            )
        }
        for kind in ("transfer", "own")
    }
    return {"best_free_baseline": best, "rows": rows, "probe_minus_pairs": leads}


def tables(found: Mapping[str, Any]) -> str:
    """Markdown."""
    rows = [
        [name, interval(row["balanced_accuracy"], 3), interval(row["pairs"], 3)]
        for name, row in found["rows"].items()
    ]
    rows += [[f"{name} (published, whole set)", f"{value:.3f}", ""] for name, value in PUBLISHED.items()]
    leads = [
        [scorer, against, interval(figure, 3, "+")]
        for scorer, own in found["probe_minus_pairs"].items()
        for against, figure in own.items()
    ]
    return "\n\n".join(
        [
            markdown(["scored by", "balanced accuracy", "pairs within a document"], rows),
            markdown(["pairs", "minus", "difference"], leads),
        ]
    )


def main() -> None:
    """Read, fit, measure, write."""
    args = arguments()
    folder = args.work / Path(args.base_model).name / f"summedits-{args.edits}"
    file = folder / "prompts.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    some_edits(args.data / "summedits.jsonl", file, args.edits)
    material = load_material("summedits", file, None, "human", (TARGET,))
    backbone = load_frozen(args.base_model, DIMENSIONS)
    stores = stores_of(material, backbone, folder)
    stores.read_own(backbone.model)
    columns: dict[str, Sequence[Floats]] = {
        name: [column] for name, column in (free_baselines(material, folder) | likelihood(stores)).items()
    }
    singles = {name: own[0] for name, own in columns.items()}
    columns[STACK] = [
        stacked_baselines(material.table, singles, material.targets, (), seed)[TARGET] for seed in args.seeds
    ]
    store = load_store(stores, args.layer_step, with_other=False)
    points, chosen = transfer(args, backbone, store)
    columns |= {f"transfer: {name}": [values] for name, values in points.items()}
    folded = [
        run_folds(material, store, stores.encoded, seed, folds=args.folds, sizes=(), ablations=False)
        for seed in args.seeds
    ]
    columns |= {f"own: {name}": [one.points[name][TARGET] for one in folded] for name in folded[0].points}
    result = {
        "documents": len(set(material.documents)),
        "answers": material.table.rows,
        "edits_a_document": args.edits,
        "consistent": float((material.targets[TARGET] > 5).mean()),
        "transfer_readout": chosen,
        "own_readouts": [one.readouts for one in folded],
        **measure(args, material, columns),
        "published": PUBLISHED,
        **environment(),
    }
    print(tables(result))
    write_result(args.output, result)


if __name__ == "__main__":
    main()
