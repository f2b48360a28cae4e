"""The memory of a labelling run: every finished call, once, in one SQLite file.

Answers are on disk before anyone uses them, so that killing a run loses at most the calls in flight. Failed calls are kept as attempts, beside the answers: a failure that would come out the same again (an answer cut
at its token limit, a refusal, a prompt too long) is reused unless the run is told to try again; one that may
pass (a timeout, a server error) is always asked again.

WAL with synchronous=FULL: a committed call survives a power cut too. Two processes may share a file: readers never
wait, writers wait for each other, the first answer to a call stays.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge_pipeline.calls.call import Call, CallUsage, Reply, TokenLogprob
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


SCHEMA_VERSION = 1

TABLES = """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, template TEXT NOT NULL, request BLOB NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT NOT NULL, structured INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,
    latency_s REAL NOT NULL, logprobs BLOB, endpoint TEXT NOT NULL, owner TEXT NOT NULL, finished REAL NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, template TEXT NOT NULL,
    request BLOB NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, text TEXT NOT NULL,
    finish_reason TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL, latency_s REAL NOT NULL, endpoint TEXT NOT NULL, owner TEXT NOT NULL,
    finished REAL NOT NULL);
CREATE INDEX IF NOT EXISTS attempts_by_key ON attempts (key, id);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batched (
    key TEXT PRIMARY KEY, file TEXT NOT NULL, owner TEXT NOT NULL, call BLOB NOT NULL);
"""
"""Answers, failed attempts, notes of a run, and calls that wait for a batch file."""

ASKED = ("key", "model", "template", "request", "endpoint", "owner", "finished")
REPLIED = ("text", "finish_reason", "input_tokens", "output_tokens", "cached_input_tokens", "latency_s")
ANSWER, FAILURE = ("structured", "logprobs"), ("reason", "detail")
"""Columns of both tables, and those of `calls` and of `attempts` alone."""


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


@dataclass(frozen=True)
class StoreTotals:
    """All a store has ever paid for: answered calls, failed attempts, and tokens of both."""

    calls: int
    attempts_failed: int
    usage: CallUsage = field(default_factory=CallUsage)


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, ensure_ascii=False).encode(), 6)


def _unpack(blob: bytes) -> Any:
    return json.loads(zlib.decompress(blob))


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
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise UserError(
                f"{self.path} was written by another version of this program (format {version})",
                "use that version, or choose a new --output",
            )
        self._write_ahead()
        self._db.execute("PRAGMA synchronous = FULL")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE;{TABLES}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")

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
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; committed, and on disk, when the block ends."""
        with self._lock, self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")

    def _first(self, sql: str, *values: str) -> Any:
        """The first row that a query finds; None without any."""
        with self._read_lock, self._errors_named():
            return self._reader.execute(sql, values).fetchone()

    def get(self, key: str) -> Reply | None:
        """The stored answer; or the last failure if asking again would repeat it."""
        found = self.find(key)
        return found.reply if found else None

    def find(self, key: str, lasting: Collection[str] = LASTING_FAILURES) -> Stored | None:
        """`get`, and who asked. `lasting` names the failures that count as a reply."""
        row = self._first(f"SELECT owner, {', '.join(REPLIED + ANSWER)} FROM calls WHERE key = ?", key)
        if row is not None:
            logprobs = row["logprobs"] and [TokenLogprob(**item) for item in _unpack(row["logprobs"])]
            return Stored(_reply(row, structured=bool(row["structured"]), logprobs=logprobs), row["owner"])
        failed = self.last_failure(key) if lasting else None
        return failed if failed is not None and failed.reply.failure in lasting else None

    def last_failure(self, key: str) -> Stored | None:
        """The last failed attempt at a call, whatever its reason."""
        found = f"SELECT owner, {', '.join(REPLIED + FAILURE)} FROM attempts WHERE key = ?"
        row = self._first(f"{found} ORDER BY id DESC LIMIT 1", key)
        return row and Stored(_reply(row, failure=row["reason"], detail=row["detail"]), row["owner"])

    def put(self, finished: Sequence[Finished], *, replace: bool = False) -> set[str]:
        """Store replies in one transaction; they are on disk when this returns.

        The first answer to a call stays, whoever asks again, unless `replace` says that it is to be superseded.
        Returns the keys of answers that were not taken because another process had been first.
        """
        late: set[str] = set()
        rows = [_row(item) for item in finished]
        answers = [row for row in rows if row["reason"] is None]
        failures = [row for row in rows if row["reason"] is not None]
        with self._writing() as db:
            if not replace:
                seen = "SELECT 1 FROM calls WHERE key = ?"
                late = {row["key"] for row in answers if db.execute(seen, (row["key"],)).fetchone()}
            how = "INSERT OR REPLACE" if replace else "INSERT OR IGNORE"
            db.executemany(_insert(how, "calls", ASKED + REPLIED + ANSWER), answers)
            db.executemany(_insert("INSERT", "attempts", ASKED + REPLIED + FAILURE), failures)
        return late

    def request(self, key: str) -> dict[str, Any] | None:
        """What was asked: messages, sampling, schema, prompt version."""
        row = self._first("SELECT request FROM calls WHERE key = ?", key)
        return _unpack(row[0]) if row else None

    def totals(self) -> StoreTotals:
        """Counts and tokens over everything in the store."""
        sums = ", ".join(f"TOTAL({name}) AS {name}" for name in CallUsage.model_fields)
        answered, failed = (
            self._first(f"SELECT COUNT(*) AS n, {sums} FROM {table}") for table in ("calls", "attempts")
        )
        tokens = {name: int(answered[name]) + int(failed[name]) for name in CallUsage.model_fields}
        return StoreTotals(answered["n"], failed["n"], CallUsage(**tokens))

    def note(self, name: str) -> str | None:
        """A remembered fact about the run, e.g. what an endpoint can do."""
        row = self._first("SELECT value FROM notes WHERE name = ?", name)
        return row[0] if row else None

    def set_note(self, name: str, value: str) -> None:
        """Remember a fact."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def set_batched(self, calls: Iterable[tuple[str, Call, str]], file: str) -> None:
        """Remember which calls (key, call, owner) a batch file asks, so that its answers can be matched and missed."""
        rows = [(key, file, owner, _pack(call.model_dump(mode="json"))) for key, call, owner in calls]
        with self._writing() as db:
            db.executemany("INSERT OR REPLACE INTO batched VALUES (?, ?, ?, ?)", rows)

    def batched(self) -> dict[str, tuple[Call, str]]:
        """Calls that were written to a batch file and have no answer yet, with their owners, by key."""
        with self._lock, self._errors_named():
            rows = self._db.execute(
                "SELECT key, call, owner FROM batched WHERE key NOT IN (SELECT key FROM calls)"
            ).fetchall()
        return {key: (Call.model_validate(_unpack(call)), owner) for key, call, owner in rows}

    def clear_batched(self, keys: Iterable[str]) -> None:
        """Forget that calls were asked in a batch file: their rows have been taken in."""
        with self._writing() as db:
            db.executemany("DELETE FROM batched WHERE key = ?", [(key,) for key in keys])

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._db.close()


def _row(item: Finished) -> dict[str, Any]:
    """A finished call under the names of all columns of both tables."""
    call, reply = item.call, item.reply
    return {
        "key": call.key(item.model),
        "model": item.model,
        "template": call.template,
        "request": _pack(call.asked()),
        "endpoint": item.endpoint,
        "owner": item.owner,
        "finished": time.time(),
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        **reply.usage.model_dump(),
        "latency_s": reply.latency_s,
        "structured": int(reply.structured),
        "logprobs": _pack([token.model_dump() for token in reply.logprobs]) if reply.logprobs else None,
        "reason": reply.failure,
        "detail": reply.detail,
    }


def _insert(how: str, table: str, columns: Sequence[str]) -> str:
    names, values = ", ".join(columns), ", ".join(f":{column}" for column in columns)
    return f"{how} INTO {table} ({names}) VALUES ({values})"


def _reply(row: sqlite3.Row, **more: Any) -> Reply:
    return Reply(
        text=row["text"],
        finish_reason=row["finish_reason"],
        usage=CallUsage(**{name: row[name] for name in CallUsage.model_fields}),
        latency_s=row["latency_s"],
        **more,
    )


class StoreWriter:
    """Takes replies from an event loop and commits them in groups: one disk flush for all that wait.

    `put` returns when the reply is on disk. One thread does the writing, so the loop never waits for a disk.
    """

    def __init__(self, store: CallStore) -> None:
        self.store = store
        self._waiting: list[tuple[Finished, bool, asyncio.Future[bool]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="call-store")
        self._task: asyncio.Task[None] | None = None

    async def put(self, finished: Finished, *, replace: bool = False) -> bool:
        """Store one reply durably; False when another answer was there first. Raises UserError when the disk is full."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((finished, replace, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())
        return await asyncio.shield(done)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                late = await loop.run_in_executor(self._thread, self._commit, group)
            except UserError as error:
                for _, _, done in group:
                    done.set_exception(error)
            else:
                for item, _, done in group:
                    done.set_result(not late or item.call.key(item.model) not in late)

    def _commit(self, group: list[tuple[Finished, bool, asyncio.Future[bool]]]) -> set[str]:
        late: set[str] = set()
        for replace in (False, True):
            finished = [item for item, flag, _ in group if flag is replace]
            if finished:
                late |= self.store.put(finished, replace=replace)
        return late

    async def close(self) -> None:
        """Wait for everything under way to be on disk."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()
