"""What the tests of sampling share: a real HTTP endpoint that notes what it is asked, and the command."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

from dpo_helpers import prompt_rows, write_jsonl

from dpo.cli import main


def run_sample(
    tmp_path: Path, model: Path | str, *flags: str, rows: list[dict[str, Any]] | None = None
) -> int:
    prompts = tmp_path / "prompts.jsonl"
    if not prompts.exists():
        write_jsonl(prompts, rows or prompt_rows(4))
    return main(
        ["sample", str(prompts), "--model", str(model), "--output", str(tmp_path / "out.jsonl"),
         "--n", "3", "--max-new-tokens", "8", *flags]
    )  # fmt: skip


class Endpoint(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does; `mode` makes it difficult."""

    mode = "n"
    calls: list[dict[str, Any]]
    keys: list[str | None]
    at_once: list[int]
    """How many requests were under way as each arrived."""
    under_way = 0
    lock = threading.Lock()
    slow_s = 0.0
    more: ClassVar[dict[str, Any]] = {}
    """Fields of every answer's message."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        with kind.lock:
            kind.calls.append(body)
            kind.keys.append(self.headers.get("Authorization"))
            kind.under_way += 1
            kind.at_once.append(kind.under_way)
        time.sleep(kind.slow_s)
        with kind.lock:
            kind.under_way -= 1  # before the reply: the client may ask again as soon as it has it
        mode, count = type(self).mode, body.get("n", 1)
        if mode == "key":
            return self.reply(401, {"error": {"message": "bad key"}})
        if mode == "model":
            return self.reply(404, {"error": {"message": "no such model"}})
        if mode == "no-n" and count > 1:
            return self.reply(400, {"error": {"message": "'n' must be 1", "param": "n"}})
        if mode == "max" and "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return self.reply(400, {"error": {"message": text}})
        if mode == "busy" and len(type(self).calls) % 2:
            return self.reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        if mode == "strict" and (other := sorted({"top_k", "min_p", "repetition_penalty"} & body.keys())):
            text = f"Unrecognized request arguments supplied: {', '.join(other)}"
            return self.reply(400, {"error": {"message": text}})
        if mode == "long":
            return self.reply(400, {"error": {"message": "maximum context length is 10 tokens"}})
        given = 1 if mode == "few" else count
        choices = [
            {
                "index": i,
                "finish_reason": "length" if i else "stop",
                "message": {"role": "assistant", "content": f"answer {body['seed'] + i}", **kind.more},
            }
            for i in range(given)
        ]
        usage = {"prompt_tokens": 5, "completion_tokens": 3 * given, "total_tokens": 5 + 3 * given}
        self.reply(
            200,
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": choices,
                "usage": usage,
            },
        )

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass
