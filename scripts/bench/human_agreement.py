"""Agreement with people on every file they judged: the tables of `judge-pipeline evaluate`, gathered in one place.

Without labels it measures the baselines that cost nothing. With `--labels NAME=DIR` (a label run over that file) the
judge stands beside them, with each dimension left out, fitted weights and, with `--pairwise-judge --holistic`, the
judge baselines. Writes human_agreement.json beside this file, and Markdown to standard output.

    python scripts/bench/human_agreement.py --data DIR --work DIR [--labels mtrag=runs/mtrag …] [flags of evaluate]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from judge_pipeline.cli import main as judge_pipeline
from judge_pipeline.statistics.compare import PREFERENCES
from judge_pipeline.statistics.render import interval, markdown
from scripts.bench.evidence_common import command_line, environment, write_result

FILES = ("qmsum_meetings.jsonl", "longdocfactscore.jsonl", "mtrag.jsonl", "qa_feedback.jsonl")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """(own settings, flags handed on to `judge-pipeline evaluate`)."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/human-agreement"))
    parser.add_argument("--files", nargs="+", default=FILES)
    parser.add_argument("--labels", nargs="*", default=[], metavar="NAME=DIR")
    return parser.parse_known_args()


def evaluate(path: Path, labels: str | None, work: Path, flags: list[str]) -> dict[str, Any]:
    """Run `judge-pipeline evaluate` on one file and read what it wrote."""
    scored = [labels, "--prompts", str(path)] if labels else [str(path)]
    output = work / path.name.split(".")[0]
    code = judge_pipeline(["evaluate", *scored, "--output", str(output), "--existing", "replace", *flags])
    if code != 0:
        raise SystemExit(code)
    return dict(json.loads((output / "agreement.json").read_text(encoding="utf-8")))


def compact(found: dict[str, Any]) -> dict[str, Any]:
    """The figures worth keeping in the repository: no texts, one row a scorer."""
    results = []
    for result in found["results"]:
        rows = [{"name": row["name"], **row["within"]} for row in result["rows"]]
        results.append({"target": result["target"], "documents": result["documents"], "rows": rows})
    kept = ("prompts", "answers", "documents", "notes", "dimensions", "raters", "judge_baselines")
    return {**{name: found[name] for name in kept if name in found}, "results": results}


def tables(results: dict[str, dict[str, Any]]) -> str:
    """One Markdown table a file: a row a scorer, a column a target."""
    parts = []
    for name, found in results.items():
        targets = [result["target"] for result in found["results"]]
        names = dict.fromkeys(row["name"] for result in found["results"] for row in result["rows"])
        rows = []
        for scorer in names:
            cells = []
            for result in found["results"]:
                row: dict[str, Any] = next((row for row in result["rows"] if row["name"] == scorer), {})
                metric = "pairs" if result["target"] == PREFERENCES else "spearman"
                cells.append(interval(row.get(metric), 2))
            rows.append([scorer, *cells])
        heads = ["scored by", *(target + (" (pairs)" if target == PREFERENCES else "") for target in targets)]
        size = f"{found['prompts']} prompts, {found['answers']} answers, {found['documents']} documents"
        parts.append(f"**{name}** ({size})\n\n{markdown(heads, rows)}")
    return "\n\n".join(parts)


def main() -> None:
    """Every file."""
    args, flags = arguments()
    labels = dict(item.split("=", 1) for item in args.labels)
    results = {}
    for name in args.files:
        path = args.data / name
        found = evaluate(path, labels.get(name.split(".")[0]), args.work, flags)
        results[name.split(".")[0]] = compact(found)
    print(tables(results))
    result = {"labels": sorted(labels), "flags": flags, "files": results, **environment()}
    write_result(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
