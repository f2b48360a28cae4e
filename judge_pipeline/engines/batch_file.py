"""The judge by mail: calls go into an OpenAI batch file, answers come back in another.

Works with hosted batch APIs and with `vllm run-batch`. A run with `--judge.batch-out` asks nobody: every call that
has no answer yet becomes a row, whose `custom_id` is the call's key. `take_in` reads the answers into the call store;
rows that are wrong, doubled, missing or failed become typed failures (`batch_error`) of their calls.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.calls.store import CallStore, Finished
from judge_pipeline.common.errors import UserError, disk_error
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing, StopCalls
from judge_pipeline.engines.chat_protocol import (
    MalformedReply,
    SchemaMode,
    error_reply,
    identity_of,
    inside,
    reply_from_body,
    request_body,
)
from judge_pipeline.engines.concurrency import Priority
from judge_pipeline.engines.open import JudgeConfig

URL = "/v1/chat/completions"
BUFFERED = 4096
"""Calls sorted at a time before they are written, so that rows with a common beginning follow each other."""
BATCH_FAILURES = {"batch_error", "empty_reply"}
"""Failures that count as replies when a run goes by batch files: only --retry-failed writes such calls again."""
HOSTED_ROWS, HOSTED_BYTES = 50_000, 200_000_000
"""What the large hosted batch API takes in one file."""


class BatchFileEngine:
    """Answers nothing: writes each call to the batch file, and holds it back."""

    context_window: int | None = None

    def __init__(
        self,
        model: str,
        store: CallStore,
        out: Path | None,
        *,
        structured: bool = True,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.extra_body = dict(extra_body or {})
        self.identity = identity_of(model, self.extra_body)
        self.supports_schema = structured
        self.out = out
        self.rows = self.bytes = 0
        self._store = store
        self._buffer: list[tuple[Priority, str, Call, str]] = []
        self._part = out.with_name(f".{out.name}.part") if out else None
        self._file: IO[str] | None = None

    def where(self, routing: Routing) -> str:
        """The file's name."""
        return str(self.out or "batch")

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """Raises StopCalls: the answer comes with another run."""
        routing.admit()
        self.rows += 1
        self._buffer.append((routing.priority, call.key(self.identity), call, routing.affinity))
        if len(self._buffer) >= BUFFERED:
            self._flush()
        raise StopCalls(f"waits for the answers to {self.out}" if self.out else "waits for a batch file")

    def _flush(self) -> None:
        rows = sorted(self._buffer, key=lambda row: row[:2])
        self._buffer = []
        if self.out is None or self._part is None or not rows:
            return
        mode: SchemaMode = "strict" if self.supports_schema else "off"
        try:
            if self._file is None:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._part.open("w", encoding="utf-8")
            for _, key, call, _ in rows:
                body = request_body(call, self.model, mode) | self.extra_body
                row = {"custom_id": key, "method": "POST", "url": URL, "body": body}
                line = json.dumps(row, ensure_ascii=False) + "\n"
                self.bytes += len(line.encode())
                self._file.write(line)
        except OSError as error:
            raise disk_error(error, self.out) from error
        self._store.set_batched(((key, call, owner) for _, key, call, owner in rows), str(self.out))

    def finish(self) -> None:
        """Move the file to its place, whole; with nothing to ask there is no file."""
        self._flush()
        if self._file is None or self._part is None or self.out is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, self.out)
        except OSError as error:
            raise disk_error(error, self.out) from error

    def report(self) -> str:
        """What happened, and what to do next."""
        if not self.rows:
            return "no call is pending: every answer is in"
        if self.out is None:
            return f"{self.rows} calls have no answer yet; --judge.batch-out FILE writes them"
        text = (
            f"{self.rows} calls written to {self.out}. Have them answered (a hosted batch API, or `vllm run-batch "
            f"-i {self.out} -o ANSWERS --model {self.model}`), then run the same command again with "
            "--judge.batch-in ANSWERS"
        )
        if self.rows > HOSTED_ROWS or self.bytes > HOSTED_BYTES:
            text += (
                f"\nnote: hosted APIs take at most {HOSTED_ROWS:,} rows and {HOSTED_BYTES // 10**6} MB a file; "
                "--max-calls bounds a file"
            )
        return text

    async def close(self) -> None:
        """Drop a file that was not finished."""
        if self._file is not None:
            self._file.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)


@dataclass
class BatchAnswers:
    """What the answer files held. Nothing is stored before all are read: a later row may contradict an earlier one."""

    store: CallStore
    identity: str
    replies: dict[str, Reply] = field(default_factory=dict)
    """By the key of the call that was asked."""
    problems: list[str] = field(default_factory=list)
    """Rows that could not be used, each named by file and line; and calls without a row."""

    def __post_init__(self) -> None:
        self._asked = self.store.batched()
        self._rows: dict[str, tuple[str, Any]] = {}

    def line(self, where: str, line: str) -> None:
        """Take one line of a file."""
        try:
            row = json.loads(line)
        except ValueError:
            self.problems.append(f"{where}: is not JSON; its call counts as not answered")
            return
        key = inside(row, "custom_id")
        if not isinstance(key, str):
            self.problems.append(f"{where}: has no custom_id")
        elif key in self._rows:
            first, earlier = self._rows[key]
            if _substance(earlier) != _substance(row):
                self._fail(key, f"two rows answer the same call differently: {first} and {where}")
        elif key in self._asked:
            self._rows[key] = (where, row)
            self.replies[key] = reply = _reply(self._asked[key][0], row)
            if reply.failure == "batch_error":
                self.problems.append(f"{where}: {reply.detail}")
        elif self.store.get(key) is None:
            self.problems.append(f"{where}: custom_id '{key[:20]}' was not asked by this run")

    def _fail(self, key: str, detail: str) -> None:
        self.problems.append(detail)
        self.replies[key] = _failed(detail)

    def save(self, files: str) -> None:
        """Everything into the call store; calls that were asked and have no row fail."""
        for key in [key for key in self._asked if key not in self.replies]:
            template = self._asked[key][0].template
            self._fail(key, f"no row in {files} answers this call ({template}, custom_id {key[:20]}…)")
        rows = [(reply, *self._asked[key]) for key, reply in self.replies.items()]
        finished = [Finished(call, self.identity, reply, "batch", owner) for reply, call, owner in rows]
        keys = list(self.replies)
        for start in range(0, len(keys), 500):
            self.store.put(finished[start : start + 500])
            self.store.clear_batched(keys[start : start + 500])

    def report(self) -> str:
        """Counts, and the first problems by name."""
        failed = sum(reply.failure is not None for reply in self.replies.values())
        lines = [f"batch answers: {len(self.replies) - failed} taken in, {failed} failed"]
        lines += [f"  {problem}" for problem in self.problems[:20]]
        if len(self.problems) > 20:
            lines.append(f"  and {len(self.problems) - 20} more")
        return "\n".join(lines)


def _substance(row: Any) -> str:
    """What a row says, without ids and times that differ between copies."""
    return json.dumps([inside(row, "response", "body", "choices"), inside(row, "error")], sort_keys=True)


def _reply(call: Call, row: dict[str, Any]) -> Reply:
    """The reply in a row of a batch output file, or a typed failure."""
    error, status, body = (
        row.get("error"),
        inside(row, "response", "status_code"),
        inside(row, "response", "body"),
    )
    if status == 200 and not error:
        try:
            return reply_from_body(body, structured=call.json_schema is not None)
        except MalformedReply as malformed:
            return _failed(str(malformed))
    said = json.dumps(error or body or "neither response nor error", ensure_ascii=False)[:300]
    detail = f"the row failed (status {status}): {said}"
    return error_reply(detail) or _failed(detail)


def _failed(detail: str) -> Reply:
    return Reply(failure="batch_error", detail=detail, finish_reason="error")


def take_in(paths: Sequence[Path], store: CallStore, identity: str) -> BatchAnswers:
    """Read answer files into the store. Raises UserError when a file is not there or nothing was asked."""
    answers = BatchAnswers(store, identity)
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        answers.line(f"{path}, line {number}", line)
        except OSError as error:
            raise UserError(f"--judge.batch-in: cannot read {path}: {error.strerror}") from error
    answers.save(", ".join(path.name for path in paths))
    return answers


def open_batch_file(judge: JudgeConfig, store: CallStore) -> BatchFileEngine | None:
    """Take in answered batch files, and be ready to write the next one.

    None when no batch file is named, and when an endpoint is there to ask what the files have left open.
    """
    if judge.model is None or not (judge.batch_in or judge.batch_out):
        return None
    if judge.batch_in:
        answers = take_in(judge.batch_in, store, identity_of(judge.model, judge.extra_body))
        print(answers.report(), file=sys.stderr)
    if judge.base_url:
        return None
    structured = judge.structured != "off"
    return BatchFileEngine(
        judge.model, store, judge.batch_out, structured=structured, extra_body=judge.extra_body
    )
