"""Verification of statements: one a call against six a call, both against what people said of faithfulness.

In: prompts whose answers people rated for faithfulness, and any judge. The judge labels faithfulness twice, with
`--statements-per-call` 1 and 6; statements are extracted once and shared. Out, in statements.json beside this file:

- balanced accuracy of each against people's labels (an answer counts as faithful when people rate it at or above the
  median; the judge's threshold is chosen on other documents), with intervals over documents;
- pair accuracy within prompts;
- how often the six-a-call verdict on a statement equals the one-a-call verdict, and Cohen's κ;
- calls and tokens of both.

    python scripts/bench/statements.py --data DIR --work DIR [--files longdocfactscore.jsonl mtrag.jsonl] [--limit N] \\
        [any --judge.… flag of `judge-pipeline label`]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score
from sklearn.model_selection import GroupKFold

from judge_pipeline.cli import main as judge_pipeline
from judge_pipeline.common.record_files import labels_by_answer, read_prompts, write_records
from judge_pipeline.common.records import Label, Prompt
from judge_pipeline.statistics.agreement import decided_pairs, pair_accuracy
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.render import interval, markdown
from judge_pipeline.statistics.table import AnswerTable, Floats, build_table
from scripts.bench.evidence_common import command_line, environment, write_result

SIZES = (1, 6)
COSTS = ("calls", "input_tokens", "output_tokens")
PARTIAL = 3
"""Exit code of a label run in which some answers have no score."""


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """(own settings, flags handed on to `judge-pipeline label`)."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/statements"))
    parser.add_argument("--files", nargs="+", default=["longdocfactscore.jsonl", "mtrag.jsonl"])
    parser.add_argument("--limit", type=int, help="prompts of each file, shortest documents first")
    return parser.parse_known_args()


def rated_prompts(path: Path, limit: int | None) -> list[Prompt]:
    """Prompts with two or more answers whose faithfulness people rated."""
    found = []
    for prompt in read_prompts(path):
        rated = [r for r in prompt.responses if (r.human or {}).get("faithfulness") is not None]
        if len(rated) > 1:
            found.append(prompt.model_copy(update={"responses": rated, "preferences": []}))
    return sorted(found, key=lambda prompt: len(prompt.context))[:limit]


def label(prompts: Path, work: Path, size: int, flags: list[str]) -> Path:
    """Label faithfulness with `size` statements a call; extraction calls of the other size are taken over."""
    output = work / f"k{size}"
    other = work / f"k{SIZES[0]}" / "calls.sqlite"
    if size != SIZES[0] and other.is_file() and not output.is_dir():
        output.mkdir(parents=True)
        shutil.copy(other, output / "calls.sqlite")
    words = ["label", str(prompts), "--output", str(output), "--dimensions", "faithfulness"]
    words += ["--statements-per-call", str(size), "--existing", "resume", *flags]
    code = judge_pipeline(words)
    if code not in (0, PARTIAL):  # some answers without a label are shown in the table
        raise SystemExit(code)
    return output


def held_out_accuracy(table: AnswerTable, human: Floats, judged: Floats, seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy of thresholded judge scores, the threshold chosen on other documents; interval over documents."""
    document = np.repeat(table.document_P, table.end_P - table.start_P)
    known = np.flatnonzero(np.isfinite(human) & np.isfinite(judged))
    truth = human[known] >= np.median(human[known])
    documents = np.unique(document[known])
    if len(documents) < 2 or len(set(truth.tolist())) < 2:
        return {"value": None, "low": None, "high": None, "count": len(known)}
    predicted = np.zeros(len(known), dtype=bool)
    splitter = GroupKFold(min(5, len(documents)), shuffle=True, random_state=seed)
    for train, test in splitter.split(known, groups=document[known]):
        candidates = np.unique(judged[known][train])
        scores = [balanced_accuracy_score(truth[train], judged[known][train] >= cut) for cut in candidates]
        predicted[test] = judged[known][test] >= candidates[int(np.argmax(scores))]
    value = float(balanced_accuracy_score(truth, predicted))
    generator = np.random.default_rng(seed)
    rows_of = {number: np.flatnonzero(document[known] == number) for number in documents}
    samples = []
    for _ in range(1000):
        rows = np.concatenate([rows_of[number] for number in generator.choice(documents, len(documents))])
        if len(set(truth[rows].tolist())) == 2:
            samples.append(balanced_accuracy_score(truth[rows], predicted[rows]))
    low, high = np.quantile(samples, [0.025, 0.975]).tolist() if samples else (None, None)
    return {"value": value, "low": low, "high": high, "count": len(known)}


def verdicts(labels: dict[tuple[str, str], Label]) -> dict[tuple[str, str, str], str]:
    """(prompt, response, statement) → verdict, where there is one."""
    return {
        (*key, row["text"]): row["verdict"]
        for key, item in labels.items()
        for row in (item.evidence.get("faithfulness") or {}).get("statements", [])
        if row.get("verdict") is not None
    }


def compare_verdicts(
    one: dict[tuple[str, str, str], str], six: dict[tuple[str, str, str], str]
) -> dict[str, Any]:
    """Agreement of the two ways on the statements both judged."""
    shared = sorted(one.keys() & six.keys())
    if not shared:
        return {"statements": 0}
    first, second = ([way[key] for key in shared] for way in (one, six))
    varied = len({*first, *second}) > 1
    return {
        "statements": len(shared),
        "equal": float(np.mean([a == b for a, b in zip(first, second, strict=True)])),
        "kappa": float(cohen_kappa_score(first, second)) if varied else None,
        "only_one_way": len(one.keys() ^ six.keys()),
    }


def run_file(path: Path, args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Label a file both ways and compare."""
    work = args.work / path.name.split(".")[0]
    prompts = rated_prompts(path, args.limit)
    write_records(work / "prompts.jsonl", prompts)
    table = build_table(prompts)
    human = table.from_responses(lambda prompt, i: (prompt.responses[i].human or {}).get("faithfulness"))
    bootstrap = DocumentBootstrap(table.document_P)
    pairs = decided_pairs(table, human)
    ways: dict[str, Any] = {}
    found: dict[int, dict[tuple[str, str], Label]] = {}
    for size in SIZES:
        output = label(work / "prompts.jsonl", work, size, flags)
        rows = found[size] = labels_by_answer(output)
        judged = table.from_labels(rows, "faithfulness")
        ways[f"k{size}"] = {
            "labelled": int(np.isfinite(judged).sum()),
            "answers": table.rows,
            "balanced_accuracy": held_out_accuracy(table, human, judged),
            "pairs": bootstrap.ratio(pair_accuracy(table, pairs, judged)).as_json(),
            **{name: sum(getattr(row.usage, name) for row in rows.values()) for name in COSTS},
        }
    same = compare_verdicts(verdicts(found[SIZES[0]]), verdicts(found[SIZES[1]]))
    return {"prompts": len(prompts), "documents": table.documents, "ways": ways, "verdicts": same}


def main() -> None:
    """Every file, both ways."""
    args, flags = arguments()
    results = {path: run_file(args.data / path, args, flags) for path in args.files}
    rows = []
    for name, found in results.items():
        for way, figures in found["ways"].items():
            cells = [interval(figures["balanced_accuracy"]), interval(figures["pairs"])]
            costs = [f"{figures['calls']:,.0f}", f"{figures['input_tokens']:,.0f}"]
            labelled = f"{figures['labelled']}/{figures['answers']}"
            rows.append([name, way, labelled, *cells, *costs])
        same = found["verdicts"]
        if count := same["statements"]:
            rows.append([name, "same verdict", f"{count} statements", f"{same['equal']:.3f}", "", "", ""])
    heads = ["file", "statements a call", "labelled", "balanced accuracy", "pairs", "calls", "input tokens"]
    print(markdown(heads, rows))
    result = {"judge": flags, "limit": args.limit, "files": results, **environment()}
    write_result(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
