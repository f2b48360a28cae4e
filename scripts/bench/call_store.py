"""How long a run with many stored calls takes to go on, and how fast the call store takes and gives replies.

Writes a run directory as a killed run leaves it (every call stored, rows of all prompts but the last few), then times
the whole command that goes on with it: reading input and rows, replaying the open prompts from the store, writing what
is missing (`resume_s`); then the report. The endpoint that answers would refuse any call, and is never asked for one.

    python scripts/bench/call_store.py [--calls 200000]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from judge_pipeline.calls.call import Call, CallUsage, Message, Reply
from judge_pipeline.calls.store import CallStore, Finished
from judge_pipeline.common.records import DIMENSIONS, Prompt
from judge_pipeline.labelling.fingerprint import judged_hashes
from judge_pipeline.labelling.label import fingerprint, identity_note
from judge_pipeline.labelling.label_config import LabelConfig
from scripts.bench.evidence_common import command_line, environment, write_result

HERE = Path(__file__)
ANSWERS, CALLS_A_PROMPT = 10, 100
GROUP = 500


def call(number: int) -> Call:
    """A call of some 4,000 characters."""
    text = f"Passage {number}. " + "The weights of all parts are listed in the table below. " * 70
    return Call(template="faithfulness.verify", messages=(Message(role="user", content=text),))


def fill(path: Path, calls: int) -> float:
    """Seconds to store so many replies, `GROUP` to a commit."""
    store = CallStore(path)
    reply = Reply(text="It says so. " * 20, usage=CallUsage(input_tokens=900, output_tokens=60))
    started = time.monotonic()
    for start in range(0, calls, GROUP):
        numbers = range(start, start + GROUP)
        store.put([Finished(call(n), "judge", reply, "http://x", str(n)) for n in numbers])
    seconds = time.monotonic() - started
    store.close()
    return seconds


def write_run(folder: Path, prompts: int) -> None:
    """The input, and rows for every prompt."""
    settings = {"prompts": folder / "prompts.jsonl", "output": folder / "run", "retrieval": "bm25"}
    config = LabelConfig.model_validate({**settings, "judge": {"model": "judge"}})
    judge = fingerprint(config, "judge")
    with closing(CallStore(folder / "run" / "calls.sqlite")) as store:
        store.set_note(identity_note(config), "judge")
    with (folder / "prompts.jsonl").open("w") as inputs, (folder / "run" / "labels.jsonl").open("w") as rows:
        for number in range(prompts):
            responses = [{"id": str(n), "text": f"Part {n} weighs {n} kg."} for n in range(ANSWERS)]
            prompt = {
                "id": str(number),
                "context": f"Machine {number} has parts. " * 800,
                "query": "How heavy?",
            }
            whole = {**prompt, "responses": responses}
            inputs.write(json.dumps(whole) + "\n")
            judged = judged_hashes(Prompt.model_validate(whole))
            row: dict[str, Any] = {
                "prompt_id": str(number),
                "scores": dict.fromkeys(DIMENSIONS, 5.0),
                "reward": 5.0,
                "status": "labelled",
                "evidence": {name: {"analysis": "It was looked at. " * 40} for name in DIMENSIONS},
                "usage": {"calls": 10, "input_tokens": 9000, "output_tokens": 600},
            }
            for answer, text in judged.items():
                more = {"response_id": answer, "judged": text, "judge": judge}
                rows.write(json.dumps({**row, **more}) + "\n")


def main() -> int:
    """Run, print, and write the results beside this file."""
    parser = command_line(__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    options = parser.parse_args()
    prompts = options.calls // CALLS_A_PROMPT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run").mkdir()
        stored = fill(folder / "run" / "calls.sqlite", options.calls)
        write_run(folder, prompts)
        command = [
            *(sys.executable, "-m", "judge_pipeline.cli", "label", str(folder / "prompts.jsonl")),
            *("--output", str(folder / "run"), "--judge.base-url", "http://127.0.0.1:9/v1"),
            *("--judge.model", "judge", "--retrieval", "bm25", "--existing", "resume"),
        ]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        whole = time.monotonic() - started
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        resume = json.loads((folder / "run" / "summary.json").read_text())["seconds"]
        keys = [call(n).key("judge") for n in range(0, options.calls, 10)]
        store = CallStore(folder / "run" / "calls.sqlite")
        started = time.monotonic()
        found = sum(store.find(key) is not None for key in keys)
        lookups = time.monotonic() - started
        store.close()
        size = (folder / "run" / "calls.sqlite").stat().st_size
    result = {
        "what": "going on with a run of many stored calls",
        "calls": options.calls,
        "prompts": prompts,
        "answers": prompts * ANSWERS,
        "resume_s": resume,
        "whole_command_with_report_s": whole,
        "stored_per_s": options.calls / stored,
        "lookups_per_s": found / lookups,
        "store_bytes_per_call": size / options.calls,
        **environment(),
    }
    print(
        f"{options.calls:,} calls: all is read again in {resume:.1f} s, the report written in {whole - resume:.1f} s more; "
        f"{result['stored_per_s']:,.0f} stored and {result['lookups_per_s']:,.0f} found a second"
    )
    write_result(HERE.with_suffix(".json"), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
