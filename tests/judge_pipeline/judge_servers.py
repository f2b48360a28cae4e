"""A judge over real HTTP for tests: sane answers to every call of the pipeline, and faults on demand.

The server speaks the chat-completions protocol. It counts, by request body, the calls it answered well, so that a
test can see whether any call was made again after it had succeeded.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from judge_pipeline.engines.endpoint_checks import PROBE
from judge_pipeline.engines.lanes import HARMLESS

Fault = Callable[["Handler", dict[str, Any], int], bool]
"""Called with the handler, the body and the attempt's number; True when it has dealt with the request."""


def is_check(body: dict[str, Any]) -> bool:
    """Whether a request is one that the engine makes by itself, to see whether a server is there or keeps to schemas."""
    return body["messages"][0]["content"] in {call.messages[0].content for call in (HARMLESS, PROBE)}


def sane_value(schema: dict[str, Any], seed: int) -> Any:
    if "enum" in schema:
        return schema["enum"][seed % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        return {name: sane_value(part, seed) for name, part in schema["properties"].items()}
    if kind == "array":
        if schema["items"].get("type") == "string":
            return [f"Fact {seed % 5}.", f"Fact {seed % 7 + 5}."][: schema.get("maxItems", 2)]
        return []
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return True
    return "The answer was looked at."


def sane_text(body: dict[str, Any]) -> str:
    """An answer to a call: JSON where a schema is given."""
    last = body["messages"][-1]["content"]
    form = body.get("response_format")
    seed = sum(last.encode())
    if form:
        return json.dumps(sane_value(form["json_schema"]["schema"], seed))
    first = body["messages"][0]["content"].lower()
    if "[[fully supported]]" in first:
        return "It says so.\nVerdict: [[Fully supported]]"
    if "rating: [[" in "".join(message["content"].lower() for message in body["messages"]):
        return f"Fine.\nRating: [[{seed % 11}]]"
    return "- Fact one.\n- Fact two."


def completion(text: str, finish: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
                "finish_reason": finish,
            }
        ],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 110,
            "prompt_tokens_details": {"cached_tokens": 40},
        },
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.server.authorized(self):
            self.send_json({"error": {"message": "bad key"}}, 401)
            return
        entries = [{"id": name, "object": "model", **self.server.model_info} for name in self.server.models]
        self.send_json({"object": "list", "data": entries})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        server = self.server
        if not server.authorized(self):
            self.send_json({"error": {"message": "bad key"}}, 401)
            return
        key = json.dumps(body, sort_keys=True)
        with server.lock:
            server.attempts[key] += 1
            attempt = server.attempts[key]
            server.requests += 1
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            if server.latency:
                time.sleep(server.latency)
            if server.fault is not None and server.fault(self, body, attempt):
                return
            with server.lock:
                server.succeeded[key] += 1
                server.bodies.append(body)
            self.send_json(completion(server.answer(body)))
        finally:
            with server.lock:
                server.in_flight -= 1

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_text(json.dumps(value), status, headers)

    def send_text(self, text: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = text.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed, which is what some tests do

    def reset(self) -> None:
        """Drop the connection without an answer."""
        self.close_connection = True
        self.connection.close()


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, fault: Fault | None = None, *, latency: float = 0.0, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.fault, self.latency = fault, latency
        self.answer: Callable[[dict[str, Any]], str] = sane_text
        self.key: str | None = None
        self.models = ["judge"]
        self.model_info: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.attempts: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.met: Counter[str] = Counter()
        self.requests = self.in_flight = self.most_in_flight = 0

    def authorized(self, handler: Handler) -> bool:
        return self.key is None or handler.headers.get("Authorization") == f"Bearer {self.key}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that are killed leave broken connections

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def write_prompts(path: Path, prompts: int, answers: int, *, sentences: int = 30) -> None:
    """Prompts over small documents, every answer its own."""
    rows = [
        {
            "id": f"p{p}",
            "context": " ".join(
                f"Document {p} says that item {s} has colour {s * 7 % 13}." for s in range(sentences)
            ),
            "query": f"What does document {p} say about items?",
            "responses": [
                {
                    "id": f"r{r}",
                    "text": f"Document {p}: item {r} has colour {r * 7 % 13}. Item {r + 1} is fine.",
                }
                for r in range(answers)
            ],
        }
        for p in range(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
