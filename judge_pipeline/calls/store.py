"""The memory of a labelling run: every finished call, once, in one SQLite file.

Answers are on disk before anyone uses them, so that killing a run loses at most the calls in flight. Failed calls are kept as attempts, beside the answers: a failure that would come out the same again (an answer cut
at its last token limit, a refusal, a prompt too long) is reused unless the run is told to try again; one that may
pass (a timeout, a server error) is always asked again. Nothing that was paid for is forgotten: an answer that another
one takes the place of stays as an attempt.

WAL with synchronous=FULL: a committed call survives a power cut too. Two processes may share a file: readers never
wait, writers wait for each other, the first answer to a call stays.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge_pipeline.calls.call import Call, CallUsage, Reply, TokenLogprob
from judge_pipeline.calls.schema import SCHEMA_VERSION, SUPERSEDED, format_of, pack, prepare_tables, unpack
from judge_pipeline.common.errors import UserError

LASTING_FAILURES = frozenset({"truncated", "refused", "context_too_long"})
"""Failures that asking again would repeat; `--retry-failed` asks again all the same."""

WAIT_S = 60.0
"""How long a process waits for another one that writes."""

STORE_FILES = ("calls.sqlite", "calls.sqlite-wal", "calls.sqlite-shm")
"""A store in a run directory, and what SQLite keeps beside it."""


def holds_calls(path: Path) -> bool:
    """Whether there is a store at `path` with anything paid for or awaited; one that cannot be read counts."""
    if not path.is_file():
        return False
    query = " OR ".join(f"EXISTS (SELECT 1 FROM {table})" for table in ("calls", "attempts", "batched"))
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return bool(db.execute(f"SELECT {query}").fetchone()[0])
    except sqlite3.Error:
        return True


ASKED = ("key", "model", "template", "request", "endpoint", "owner", "finished")
REPLIED = ("text", "finish_reason", *CallUsage.model_fields, "latency_s")
ANSWER, FAILURE = ("structured", "logprobs"), ("reason", "detail")
"""Columns of both tables, and those of `calls` and of `attempts` alone."""
SUMS = ", ".join(f"TOTAL({name}) AS {name}" for name in CallUsage.model_fields)


def _insert(how: str, table: str, columns: Sequence[str]) -> str:
    names, values = ", ".join(columns), ", ".join(f":{column}" for column in columns)
    return f"{how} INTO {table} ({names}) VALUES ({values})"


INSERT_ANSWER = _insert("INSERT OR REPLACE", "calls", ASKED + REPLIED + ANSWER)
INSERT_ATTEMPT = _insert("INSERT", "attempts", ASKED + REPLIED + FAILURE)


@dataclass(frozen=True)
class Finished:
    """A call with its reply, as the store takes it in."""

    call: Call
    model: str
    reply: Reply
    endpoint: str = ""
    owner: str = ""
    """The prompt that asked first, and whose answers the call's cost is counted for."""


@dataclass(frozen=True)
class Stored:
    """A reply as found in the store, with the prompt that asked for it."""

    reply: Reply
    owner: str
    usage: CallUsage = field(default_factory=CallUsage)
    """All that the call has cost, attempts that failed included."""
    max_tokens: int = 0
    """Of a reply that was cut at its token limit: that limit."""


@dataclass(frozen=True)
class StoreTotals:
    """All a store has ever paid for: answered calls, failed attempts, and tokens of both."""

    calls: int
    attempts_failed: int
    usage: CallUsage = field(default_factory=CallUsage)


class CallStore:
    """Finished calls by key. Methods may be called from any thread."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock, self._read_lock = threading.Lock(), threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._connect()
            # Readers have a connection of their own: in WAL mode they need not wait for a commit's disk flush.
            self._reader = self._connect()
            self._reader.row_factory = sqlite3.Row
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"could not open the call store {self.path}: {error}") from error
        with self._errors_named():
            self._prepare()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        version = format_of(self._db)
        if version > SCHEMA_VERSION:
            raise UserError(
                f"{self.path} was written by another version of this program (format {version})",
                "use that version, or choose a new --output",
            )
        self._write_ahead()
        self._db.execute("PRAGMA synchronous = FULL")
        prepare_tables(self._db)

    def _write_ahead(self) -> None:
        """Switch to WAL. SQLite gives up at once when two processes try this on a new file; we wait our turn."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if "full" in str(error) or "disk I/O" in str(error):
                raise UserError(
                    f"the disk is full or failing: could not write {self.path} ({error})",
                    "every call finished before is kept; free some space and run the same command again",
                ) from error
            raise UserError(
                f"the call store {self.path} cannot be used: {error}",
                "if the file is damaged, move it away; a new one is started",
            ) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; committed, and on disk, when the block ends."""
        with self._lock, self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")

    def first(self, sql: str, *values: str) -> Any:
        """The first row that a query finds, its columns by name; None without any."""
        with self._read_lock, self._errors_named():
            return self._reader.execute(sql, values).fetchone()

    def rows(self, sql: str, *values: str) -> list[Any]:
        """All rows that a query finds."""
        with self._read_lock, self._errors_named():
            return self._reader.execute(sql, values).fetchall()

    def get(self, key: str) -> Reply | None:
        """The stored answer; or the last failure if asking again would repeat it."""
        found = self.find(key)
        return found.reply if found else None

    def find(self, key: str, lasting: Collection[str] = LASTING_FAILURES) -> Stored | None:
        """`get`, and who asked. `lasting` names the failures that count as a reply."""
        row = self.first(f"SELECT owner, {', '.join(REPLIED + ANSWER)} FROM calls WHERE key = ?", key)
        if row is not None:
            logprobs = row["logprobs"] and [TokenLogprob(**item) for item in unpack(row["logprobs"])]
            reply = _reply(row, structured=bool(row["structured"]), logprobs=logprobs)
            return Stored(reply, row["owner"], reply.usage + self.lost(key))
        failed = self.last_failure(key) if lasting else None
        return failed if failed is not None and failed.reply.failure in lasting else None

    def last_failure(self, key: str) -> Stored | None:
        """The last failed attempt at a call, whatever its reason."""
        found = f"SELECT owner, request, {', '.join(REPLIED + FAILURE)} FROM attempts WHERE key = ?"
        row = self.first(f"{found} ORDER BY id DESC LIMIT 1", key)
        if row is None:
            return None
        reply = _reply(row, failure=row["reason"], detail=row["detail"])
        cut_at = unpack(row["request"])["sampling"]["max_tokens"] if reply.failure == "truncated" else 0
        return Stored(reply, row["owner"], self.lost(key), cut_at)

    def lost(self, key: str) -> CallUsage:
        """Tokens that failed attempts at a call have cost."""
        return _tokens(self.first(f"SELECT {SUMS} FROM attempts WHERE key = ?", key))

    def put(
        self,
        finished: Sequence[Finished],
        *,
        replace: bool = False,
        then: Callable[[sqlite3.Connection], Any] | None = None,
    ) -> set[str]:
        """Store replies in one transaction, and whatever else `then` writes; all is on disk when this returns.

        The first answer to a call stays, whoever asks again, unless `replace` says that it is to be superseded; the
        other one is kept as an attempt, since it was paid for. Returns the keys of answers that came too late.
        """
        rows = [_row(item, reply) for item in finished for reply in (*item.reply.earlier, item.reply)]
        late: set[str] = set()
        with self.writing() as db:
            for row in rows:
                failed = row["reason"] is not None
                there = (
                    not failed and db.execute("SELECT 1 FROM calls WHERE key = ?", (row["key"],)).fetchone()
                )
                if there and replace:
                    db.execute(f"{SUPERSEDED.format('calls')} key = ?", (row["key"],))
                elif there:
                    late.add(row["key"])
                    row |= {"reason": "superseded", "detail": "another answer was there first"}
                db.execute(INSERT_ATTEMPT if row["reason"] else INSERT_ANSWER, row)
            if then is not None:
                then(db)
        return late

    def request(self, key: str) -> dict[str, Any] | None:
        """What was asked: messages, sampling, schema, prompt version."""
        row = self.first("SELECT request FROM calls WHERE key = ?", key)
        return unpack(row[0]) if row else None

    def totals(self) -> StoreTotals:
        """Counts and tokens over everything in the store."""
        answered, failed = (
            self.first(f"SELECT COUNT(*) AS n, {SUMS} FROM {table}") for table in ("calls", "attempts")
        )
        return StoreTotals(answered["n"], failed["n"], _tokens(answered) + _tokens(failed))

    def note(self, name: str) -> str | None:
        """A remembered fact about the run, e.g. what an endpoint can do."""
        row = self.first("SELECT value FROM notes WHERE name = ?", name)
        return row[0] if row else None

    def notes(self, beginning: str) -> dict[str, str]:
        """Remembered facts whose names begin so, by the rest of their names."""
        found = self.rows("SELECT name, value FROM notes ORDER BY name")
        return {name.removeprefix(beginning): value for name, value in found if name.startswith(beginning)}

    def set_note(self, name: str, value: str) -> None:
        """Remember a fact."""
        with self.writing() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def absorb(self, path: Path) -> int:
        """Take over all that another store holds; returns how many of its answers were here already.

        Those stay as attempts, since they were paid for.
        """
        CallStore(path).close()  # one of an earlier format is converted
        asked, kept = ", ".join(ASKED + REPLIED + ANSWER), ", ".join(ASKED + REPLIED + FAILURE)
        with self._lock, self._errors_named():
            self._db.execute("ATTACH DATABASE ? AS other", (str(path),))
        try:
            with self.writing() as db:
                twice = db.execute(
                    f"{SUPERSEDED.format('other.calls')} key IN (SELECT key FROM main.calls)"
                ).rowcount
                db.execute(f"INSERT OR IGNORE INTO calls ({asked}) SELECT {asked} FROM other.calls")
                db.execute(f"INSERT INTO attempts ({kept}) SELECT {kept} FROM other.attempts ORDER BY id")
                db.execute("INSERT OR IGNORE INTO notes SELECT * FROM other.notes")
                db.execute("INSERT OR IGNORE INTO batched SELECT * FROM other.batched")
        finally:
            with self._lock, self._errors_named():
                self._db.execute("DETACH DATABASE other")
        return twice

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._db.close()


def _tokens(row: sqlite3.Row) -> CallUsage:
    return CallUsage(**{name: int(row[name]) for name in CallUsage.model_fields})


def _row(item: Finished, reply: Reply) -> dict[str, Any]:
    """A reply to a finished call under the names of all columns of both tables."""
    call = item.call
    return {
        "key": call.key(item.model),
        "model": item.model,
        "template": call.template,
        "request": pack(call.asked()),
        "endpoint": item.endpoint,
        "owner": item.owner,
        "finished": time.time(),
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        **reply.usage.model_dump(),
        "latency_s": reply.latency_s,
        "structured": int(reply.structured),
        "logprobs": pack([token.model_dump() for token in reply.logprobs]) if reply.logprobs else None,
        "reason": reply.failure,
        "detail": reply.detail,
    }


def _reply(row: sqlite3.Row, **more: Any) -> Reply:
    return Reply(
        text=row["text"],
        finish_reason=row["finish_reason"],
        usage=_tokens(row),
        latency_s=row["latency_s"],
        **more,
    )
