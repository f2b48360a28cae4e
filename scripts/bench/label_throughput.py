"""Labels a minute from an endpoint of fixed latency, beside what its concurrency allows.

The endpoint is an asyncio HTTP server in a process of its own that answers every call after the same time, whatever
the number of calls. With M calls at a time and latency T it can serve M/T calls a second; the whole command
(reading, planning, retrieval, storing each reply durably, writing rows) is held against that, from the first call's
arrival to the last one's answer, the controller's way up included.

    python scripts/bench/label_throughput.py [--latency 1.0] [--concurrency 64] [--prompts 60] [--answers 8]

Small documents and BM25 unless told otherwise: planning and storing are measured, not reading. Long documents and the
dense retriever measure whether reading and embedding keep up with the endpoint:

    python scripts/bench/label_throughput.py --tokens 64000 --retrieval dense --latency 8 --prompts 14 --answers 10 \\
        --statements 10 --result label_throughput_long.json
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
import zlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.evidence_common import command_line, environment, write_result

HERE = Path(__file__)


def value_for(schema: dict[str, Any], listed: Sequence[str] = ("One fact.", "Another fact.")) -> Any:
    """A value that fits a schema; its lists of texts are `listed`."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: value_for(part, listed) for name, part in schema["properties"].items()}
    if kind == "array":
        return list(listed) if schema["items"].get("type") == "string" else []
    return {"integer": 1, "number": 1, "boolean": True}.get(str(kind), "It was looked at.")


class FixedLatency:
    """The endpoint; tells through a pipe when the first call came and the last was answered."""

    def __init__(self, latency: float, statements: int) -> None:
        self.latency, self.statements = latency, statements
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
        schema = asked["response_format"]["json_schema"]["schema"]
        values = value_for(schema)
        if self.statements and "statements" in values:  # each answer's own
            about = zlib.crc32(body)
            values["statements"] = [
                f"Part {about + n} weighs {n} kg, it says." for n in range(self.statements)
            ]
        content = json.dumps(values)
        message = {"role": "assistant", "content": content}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"choices": choices, "usage": {"prompt_tokens": 1000, "completion_tokens": 50}}


def endpoint(latency: float, pipe: Connection, statements: int = 0) -> None:
    """The server process: sends its port, and on request what it has seen."""
    served = FixedLatency(latency, statements)

    async def run() -> None:
        server = await asyncio.start_server(served.serve, "127.0.0.1", 0, limit=2**22)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(0.05)
        seconds = served.last - served.first
        pipe.send({"seconds": seconds, "calls": served.calls, "most_in_flight": served.most})

    asyncio.run(run())


def facts(machine: int, parts: int) -> list[str]:
    """So many facts, no two alike."""
    return [f"Part {part} of machine {machine} weighs {part * 3} kg." for part in range(parts)]


FACT_TOKENS = 11
"""Tokens of a fact, about."""


def prompt_row(number: int, tokens: int, answers: int) -> dict[str, Any]:
    """A prompt over a document of about so many tokens."""
    said = facts(number, max(answers, tokens // FACT_TOKENS))
    return {
        "id": number,
        "context": " ".join(said[: max(1, tokens // FACT_TOKENS)]),
        "query": f"How heavy are the parts of machine {number}?",
        "responses": [{"id": n, "text": f"{fact} It is old."} for n, fact in enumerate(said[:answers])],
    }


def write_prompts(path: Path, lengths: Sequence[int], answers: int) -> None:
    """A prompt for each length of a document in tokens."""
    with path.open("w") as file:
        for number, tokens in enumerate(lengths):
            file.write(json.dumps(prompt_row(number, tokens, answers)) + "\n")


def main() -> int:
    """Run, print, and write the results beside this file."""
    parser = command_line(__doc__)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=660, help="of a document")
    parser.add_argument(
        "--statements", type=int, default=0, help="of each answer, its own; 0: two, all alike"
    )
    parser.add_argument("--retrieval", default="bm25")
    parser.add_argument("--result", default=HERE.with_suffix(".json").name)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(
        target=endpoint, args=(options.latency, theirs, options.statements), daemon=True
    )
    process.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(prompts, [options.tokens] * options.prompts, options.answers)
        command = [
            *(sys.executable, "-m", "judge_pipeline.cli", "label", str(prompts), "--output", f"{folder}/run"),
            *("--judge.base-url", url, "--judge.model", "judge", "--retrieval", options.retrieval),
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
        "documents": options.prompts,
        "document_tokens": options.tokens,
        "statements": options.statements,
        "retrieval": options.retrieval,
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
    write_result(HERE.with_name(options.result), result)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(HERE.parents[2]))
    sys.exit(main())
