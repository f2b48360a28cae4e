"""How much memory labelling takes: many documents of 100k tokens and one of a million, a simulated judge.

The judge answers every call after a short fixed time; what is measured is the largest resident memory of the whole
command, reading, cutting, retrieval, calls, rows and report included.

    python scripts/bench/label_memory.py [--documents 1000] [--tokens 100000] [--long-tokens 1000000]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.evidence_common import command_line, environment, write_result
from scripts.bench.label_throughput import endpoint, write_prompts

HERE = Path(__file__)


def main() -> int:
    """Run, print, and write the results beside this file."""
    parser = command_line(__doc__)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--long-tokens", type=int, default=1_000_000, help="of the one long document")
    parser.add_argument("--answers", type=int, default=2)
    parser.add_argument("--retrieval", default="bm25")
    parser.add_argument("--latency", type=float, default=0.05)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=endpoint, args=(options.latency, theirs), daemon=True).start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    lengths = [options.tokens] * options.documents
    lengths.insert(len(lengths) // 2, options.long_tokens)
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(prompts, lengths, options.answers)
        command = [
            *(sys.executable, "-m", "judge_pipeline.cli", "label", str(prompts), "--output", f"{folder}/run"),
            *("--judge.base-url", url, "--judge.model", "judge", "--retrieval", options.retrieval),
        ]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        seconds = time.monotonic() - started
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    ours.send("done")
    result = {
        "what": "largest resident memory of the whole labelling command",
        "documents": options.documents,
        "document_tokens": options.tokens,
        "long_document_tokens": options.long_tokens,
        "answers": summary["responses"],
        "labelled": summary["labelled"],
        "calls": summary["calls"]["made"],
        "retrieval": options.retrieval,
        "peak_gib": peak,
        "seconds": seconds,
        **environment(),
    }
    print(
        f"{len(lengths)} documents, {summary['calls']['made']} calls: {peak:.2f} GiB at most, {seconds:.0f} s"
    )
    write_result(HERE.with_suffix(".json"), result)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(HERE.parents[2]))
    sys.exit(main())
