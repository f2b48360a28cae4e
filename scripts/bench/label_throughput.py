"""Labels a minute from an endpoint of fixed latency, beside what its concurrency allows.

The endpoint is an asyncio HTTP server in a process of its own that answers every call after the same time, whatever
the number of calls. With M calls at a time and latency T it can serve M/T calls a second; the whole command
(reading, planning, retrieval by BM25, storing each reply durably, writing rows) is held against that, from the first
call's arrival to the last one's answer, the controller's way up included.

    python scripts/bench/label_throughput.py [--latency 1.0] [--concurrency 64] [--prompts 60] [--answers 8]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.evidence_common import command_line, environment, write_result

HERE = Path(__file__)


def value_for(schema: dict[str, Any]) -> Any:
    """A value that fits a schema."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: value_for(part) for name, part in schema["properties"].items()}
    if kind == "array":
        return ["One fact.", "Another fact."] if schema["items"].get("type") == "string" else []
    return {"integer": 1, "number": 1, "boolean": True}.get(str(kind), "It was looked at.")


class FixedLatency:
    """The endpoint; tells through a pipe when the first call came and the last was answered."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.first = self.last = 0.0
        self.calls = self.flying = self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"^content-length: *(\d+)", head, re.IGNORECASE | re.MULTILINE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                reply = await self.reply(body) if head.startswith("POST") else {"data": [{"id": "judge"}]}
                data = json.dumps(reply).encode()
                start = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(start.encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def reply(self, body: bytes) -> dict[str, Any]:
        """An answer after the fixed time."""
        asked = json.loads(body)
        probe = asked["response_format"]["json_schema"]["name"] == "probe"
        if not probe:
            self.first = self.first or time.monotonic()
            self.calls += 1
            self.flying += 1
            self.most = max(self.most, self.flying)
            await asyncio.sleep(self.latency)
            self.flying -= 1
            self.last = time.monotonic()
        content = json.dumps(value_for(asked["response_format"]["json_schema"]["schema"]))
        message = {"role": "assistant", "content": content}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"choices": choices, "usage": {"prompt_tokens": 1000, "completion_tokens": 50}}


def endpoint(latency: float, pipe: Connection) -> None:
    """The server process: sends its port, and on request what it has seen."""
    served = FixedLatency(latency)

    async def run() -> None:
        server = await asyncio.start_server(served.serve, "127.0.0.1", 0, limit=2**22)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(0.05)
        seconds = served.last - served.first
        pipe.send({"seconds": seconds, "calls": served.calls, "most_in_flight": served.most})

    asyncio.run(run())


def write_prompts(path: Path, prompts: int, answers: int) -> None:
    """Small documents: planning and storing are measured, not tokenizing."""
    with path.open("w") as file:
        for number in range(prompts):
            facts = [
                f"Part {part} of machine {number} weighs {part * 3} kg." for part in range(max(60, answers))
            ]
            row = {
                "id": number,
                "context": " ".join(facts[:60]),
                "query": f"How heavy are the parts of machine {number}?",
                "responses": [
                    {"id": n, "text": f"{fact} It is old."} for n, fact in enumerate(facts[:answers])
                ],
            }
            file.write(json.dumps(row) + "\n")


def main() -> int:
    """Run, print, and write the results beside this file."""
    parser = command_line(__doc__)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--answers", type=int, default=8)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=endpoint, args=(options.latency, theirs), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(prompts, options.prompts, options.answers)
        command = [
            *(sys.executable, "-m", "judge_pipeline.cli", "label", str(prompts), "--output", f"{folder}/run"),
            *("--judge.base-url", url, "--judge.model", "judge", "--retrieval", "bm25"),
            *("--judge.max-concurrency", str(options.concurrency)),
        ]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        whole = time.monotonic() - started
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    ours.send("done")
    seen = ours.recv()
    allowed = options.concurrency / options.latency
    rate = seen["calls"] / seen["seconds"]
    result = {
        "what": "label throughput against an endpoint of fixed latency, beside concurrency / latency",
        "latency_s": options.latency,
        "concurrency": options.concurrency,
        "answers": summary["responses"],
        **seen,
        "calls_per_s": rate,
        "allowed_calls_per_s": allowed,
        "share": rate / allowed,
        "answers_per_minute": 60 * summary["responses"] / seen["seconds"],
        "whole_command_s": whole,
        **environment(),
    }
    took = f"{seen['calls']} calls in {seen['seconds']:.1f} s"
    print(f"{took}: {rate:.1f} of {allowed:.1f} calls/s ({100 * rate / allowed:.1f}%)")
    write_result(HERE.with_suffix(".json"), result)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(HERE.parents[2]))
    sys.exit(main())
