"""Answered batch files: their rows into the call store, each to the call that it answers, whenever it comes.

Files are read twice: a later row may contradict an earlier one, and then neither is believed. Rows that are wrong become
typed failures (`batch_error`) of their calls; a call without a row stays out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge_pipeline.calls.batch_book import BatchBook, Mailed
from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.chat_protocol import MalformedReply, error_reply, inside, reply_from_body

GROUP = 500
"""Replies stored at a time."""
SHOWN = 20
"""Problems told by name."""


@dataclass
class BatchAnswers:
    """What answer files held."""

    taken_in: int = 0
    failed: int = 0
    known: int = 0
    """Rows whose answer was in the store already."""
    problems: list[str] = field(default_factory=list)
    """Rows that could not be used, each named by file and line."""
    _contradicted: dict[str, str] = field(default_factory=dict)
    """Row ids that stand twice with different answers, and where."""

    def report(self) -> str:
        """Counts, and the first problems by name."""
        already = f", {self.known} were in already" if self.known else ""
        lines = [f"batch answers: {self.taken_in} taken in, {self.failed} failed{already}"]
        lines += [f"  {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"  and {len(self.problems) - SHOWN} more")
        return "\n".join(lines)

    def survey(self, paths: Sequence[Path]) -> None:
        """Find rows that nobody can use."""
        seen: dict[str, tuple[str, bytes]] = {}
        for where, row in _rows(paths):
            if row is None:
                self.problems.append(f"{where}: is not JSON; its call counts as not answered")
                continue
            name, said = inside(row, "custom_id"), _substance(row)
            if not isinstance(name, str):
                self.problems.append(f"{where}: has no custom_id")
            elif name in seen and seen[name][1] != said and name not in self._contradicted:
                told = f"two rows answer the same call differently: {seen[name][0]} and {where}"
                self._contradicted[name] = told
                self.problems.append(told)
            else:
                seen.setdefault(name, (where, said))

    def store(self, paths: Sequence[Path], book: BatchBook) -> None:
        """Put every reply where it belongs."""
        group: dict[str, tuple[Mailed, Reply]] = {}
        done: set[str] = set()
        for where, row in _rows(paths):
            name = inside(row, "custom_id")
            if not isinstance(name, str) or name in done:
                continue
            done.add(name)
            if (mailed := book.find(name)) is not None:
                group[name] = mailed, self._reply(where, name, mailed.call, row)
            elif book.is_in(name):
                self.known += 1
            else:
                self.problems.append(f"{where}: custom_id '{name[:20]}' was not asked by this run")
            if len(group) >= GROUP:
                book.take(list(group.values()))
                group = {}
        book.take(list(group.values()))

    def _reply(self, where: str, name: str, call: Call, row: dict[str, Any]) -> Reply:
        told = self._contradicted.get(name)
        reply = _failed(told) if told else _read(call, row)
        if reply.failure == "batch_error" and not told:
            self.problems.append(f"{where}: {reply.detail}")
        self.failed += reply.failure is not None
        self.taken_in += reply.failure is None
        return reply


def take_in(paths: Sequence[Path], book: BatchBook) -> BatchAnswers:
    """Read answer files into the store. Raises UserError when a file cannot be read; nothing is stored then."""
    answers = BatchAnswers()
    answers.survey(paths)
    answers.store(paths, book)
    return answers


def _rows(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Where a row stands, and the row; None where it is not JSON."""
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"{path}, line {number}", _decoded(line)
        except OSError as error:
            raise UserError(f"--judge.batch-in: cannot read {path}: {error.strerror}") from error


def _decoded(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _substance(row: Any) -> bytes:
    """What a row says, without ids and times that differ between copies."""
    said = json.dumps([inside(row, "response", "body", "choices"), inside(row, "error")], sort_keys=True)
    return hashlib.sha256(said.encode()).digest()


def _read(call: Call, row: dict[str, Any]) -> Reply:
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
