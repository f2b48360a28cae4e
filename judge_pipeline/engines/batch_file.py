"""The judge by mail: calls go into OpenAI batch files, answers come back in others (`batch_answers`).

Works with hosted batch APIs and with `vllm run-batch`. A run with `--judge.batch-out FILE` asks nobody: every call that
has no answer and is not out becomes a row of FILE, or of FILE-2, FILE-3, … where a file is full or FILE is out already.
What is out stays so until its row comes back or the file is given up by name (`calls.batch_book`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from judge_pipeline.calls.batch_book import BatchBook, Mailed
from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.errors import disk_error, writing
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing, StopCalls
from judge_pipeline.engines.chat_protocol import Dialect, identity_of, request_body
from judge_pipeline.engines.concurrency import Priority

URL = "/v1/chat/completions"
BUFFERED = 4096
"""Calls sorted at a time before they are written, so that rows with a common beginning follow each other."""
BATCH_FAILURES = {"batch_error", "empty_reply"}
"""Failures that count as replies when a run goes by batch files: only --retry-failed writes such calls again."""


@dataclass(frozen=True)
class FileLimits:
    """What a batch service takes in one file."""

    rows: int = 50_000
    bytes: int = 200_000_000


class BatchFiles:
    """Writes rows to files of bounded size, each whole in its place before its calls count as out."""

    def __init__(self, out: Path, book: BatchBook, limits: FileLimits) -> None:
        self.out, self.book, self.limits = out, book, limits
        self.written: dict[Path, int] = {}
        """Rows by file."""
        self._bytes = 0
        self._path: Path | None = None
        self._file: IO[bytes] | None = None

    def recover(self) -> None:
        """Put right what a killed run left: a file that was noted and not moved, or begun and not noted."""
        self.book.drop_drafts()
        for name in self.book.out():
            part, path = _part(Path(name)), Path(name)
            if part.is_file():
                with writing(path):
                    os.replace(part, path)

    def write(self, rows: Iterable[tuple[Mailed, bytes]]) -> None:
        """Add rows: the call and its line."""
        drafted: list[Mailed] = []
        for mailed, line in rows:
            if self._path is not None and self._full(len(line)):
                self._note(drafted)
                self.finish()
                drafted = []
            path = self._path or self._begin()
            try:
                assert self._file is not None
                self._file.write(line)
            except OSError as error:
                raise disk_error(error, path) from error
            drafted.append(mailed)
            self._bytes += len(line)
            self.written[path] += 1
        self._note(drafted)

    def _full(self, more: int) -> bool:
        rows = self.written[self._path] if self._path else 0
        return rows >= self.limits.rows or self._bytes + more > self.limits.bytes

    def _begin(self) -> Path:
        """Start on the first file of this name that holds nothing which is still out, and is nobody else's."""
        ours, out, number = self.book.files(), self.book.out(), 1
        path = self.out.absolute()
        while path in self.written or str(path) in out or (path.exists() and str(path) not in ours):
            number += 1
            path = self.out.absolute().with_name(f"{self.out.stem}-{number}{self.out.suffix}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _part(path).open("wb")
        self._path, self._bytes = path, 0
        self.written[path] = 0
        return path

    def _note(self, drafted: list[Mailed]) -> None:
        if self._path is not None and drafted:
            self.book.draft(self._path, drafted)

    def finish(self) -> None:
        """The file is whole: note that its calls are out, and move it to its place."""
        if self._file is None or self._path is None:
            return
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self.book.send(self._path)
            os.replace(_part(self._path), self._path)
        self._file = self._path = None

    def close(self) -> None:
        """Drop a file that was not finished."""
        if self._file is not None and self._path is not None:
            self._file.close()
            _part(self._path).unlink(missing_ok=True)
            self.book.drop_drafts()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


class BatchFileEngine:
    """Answers nothing: writes each call to a batch file, and holds it back."""

    context_window: int | None = None

    def __init__(
        self,
        model: str,
        book: BatchBook,
        out: Path | None,
        *,
        dialect: Dialect | None = None,
        extra_body: Mapping[str, Any] | None = None,
        limits: FileLimits | None = None,
    ) -> None:
        self.model = model
        self.extra_body = dict(extra_body or {})
        self.identity = identity_of(model, self.extra_body)
        self.dialect = dialect or Dialect()
        self.supports_schema = self.dialect.schema != "off"
        self.files = BatchFiles(out, book, limits or FileLimits()) if out else None
        self.unwritten: set[str] = set()
        """Keys of calls that no file was named for."""
        self._book = book
        self._buffer: dict[str, tuple[Priority, Call, str]] = {}
        if self.files is not None:
            self.files.recover()

    def where(self, routing: Routing) -> str:
        """What stands for the endpoint."""
        return "batch"

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """Raises StopCalls: the answer comes with another run."""
        key = call.key(self.identity)
        if self.files is None:
            self.unwritten.add(key)
            raise StopCalls("waits for a batch file", "pending")
        if key not in self._buffer:  # two dimensions may want one call
            routing.admit()
            self._buffer[key] = routing.priority, call, routing.affinity
        if len(self._buffer) >= BUFFERED:
            self._flush()
        raise StopCalls(f"waits for the answers to {self.files.out.name}", "pending")

    def _flush(self) -> None:
        """Write the buffered calls, smallest first."""
        found, self._buffer = self._buffer, {}
        if self.files is None:
            return
        ordered = sorted(found.items(), key=lambda item: (item[1][0], item[0]))
        self.files.write(self._row(key, call, owner) for key, (_, call, owner) in ordered)

    def _row(self, key: str, call: Call, owner: str) -> tuple[Mailed, bytes]:
        mailed = Mailed(self._book.new_id(key), call, self.identity, owner)
        asked = request_body(call, self.model, self.dialect.schema, self.dialect.room or 0)
        body = self.dialect.applied(asked) | self.extra_body
        row = {"custom_id": mailed.custom_id, "method": "POST", "url": URL, "body": body}
        return mailed, json.dumps(row, ensure_ascii=False).encode() + b"\n"

    def finish(self) -> dict[str, int]:
        """Write what is left; returns the rows of each file of this run. With nothing to ask there is no file."""
        self._flush()
        if self.files is None:
            return {}
        self.files.finish()
        return {str(path): rows for path, rows in self.files.written.items()}

    async def close(self) -> None:
        """Drop a file that was not finished."""
        if self.files is not None:
            self.files.close()
