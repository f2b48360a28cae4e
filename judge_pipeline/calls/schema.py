"""The call store's tables, and how a file written by an earlier version becomes one of today.

Format 1 had the token limit in a call's key. A finished answer does not depend on it, so format 2 leaves it out: keys
are made anew from what was asked, and of answers to what is now one call the first stays; the others count as paid.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from typing import Any

from judge_pipeline.calls.call import key_of

SCHEMA_VERSION = 2

_BATCHED = """
CREATE TABLE IF NOT EXISTS batched (
    custom_id TEXT PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, file TEXT NOT NULL, state TEXT NOT NULL,
    owner TEXT NOT NULL, call BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS batched_by_key ON batched (key);
CREATE INDEX IF NOT EXISTS batched_by_file ON batched (file, state);
"""
"""Calls in batch files, by the id of their row; `batch_book` says what the states are."""

TABLES = f"""
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
{_BATCHED}"""
"""Answers, failed attempts, notes of a run, and calls in batch files."""

ADDED_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("calls", "reasoning_tokens", "INTEGER NOT NULL DEFAULT 0"),
    ("attempts", "reasoning_tokens", "INTEGER NOT NULL DEFAULT 0"),
)
"""Columns (table, name, type with default) that `TABLES` lacks: every file gets them when it is opened."""

SUPERSEDED = """
INSERT INTO attempts (key, model, template, request, reason, detail, text, finish_reason, input_tokens,
    output_tokens, cached_input_tokens, reasoning_tokens, latency_s, endpoint, owner, finished)
SELECT key, model, template, request, 'superseded', 'another answer took its place', text, finish_reason, input_tokens,
    output_tokens, cached_input_tokens, reasoning_tokens, latency_s, endpoint, owner, finished
FROM {} WHERE """
"""Keeps an answer that is about to go, from the table named, among the attempts: it was paid for."""


def pack(value: Any) -> bytes:
    """A value as it lies in a column."""
    return zlib.compress(json.dumps(value, ensure_ascii=False).encode(), 6)


def unpack(blob: bytes) -> Any:
    """What `pack` packed."""
    return json.loads(zlib.decompress(blob))


def format_of(db: sqlite3.Connection) -> int:
    """The format a file was written in; 0 for a new file."""
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def prepare_tables(db: sqlite3.Connection) -> None:
    """Bring a file's tables to today's form; whole or not at all."""
    if format_of(db) == SCHEMA_VERSION and not _missing_columns(db):
        return
    db.execute("BEGIN IMMEDIATE")  # all is asked again inside: another process may have been first
    if format_of(db) == 1:
        _add_columns(db)
        _from_format_1(db)
    if format_of(db) < SCHEMA_VERSION:
        for statement in TABLES.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    _add_columns(db)
    db.execute("COMMIT")


def _missing_columns(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    there = {
        table: {row[1] for row in db.execute(f"PRAGMA table_info({table})")} for table, *_ in ADDED_COLUMNS
    }
    return [one for one in ADDED_COLUMNS if one[1] not in there[one[0]]]


def _add_columns(db: sqlite3.Connection) -> None:
    for table, name, kind in _missing_columns(db):
        db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


def _from_format_1(db: sqlite3.Connection) -> None:
    # Whose judge the calls in batch files were for, the file did not say: `BatchBook.adopt` finds out.
    db.execute("ALTER TABLE batched RENAME TO batched_1")
    for statement in _BATCHED.split(";"):
        db.execute(statement)
    db.execute("INSERT INTO batched SELECT key, '', '', file, 'out', owner, call FROM batched_1")
    db.execute("DROP TABLE batched_1")
    for table in ("attempts", "calls"):
        for (row,) in db.execute(f"SELECT rowid FROM {table} ORDER BY finished").fetchall():
            _rekey(db, table, row)


def _rekey(db: sqlite3.Connection, table: str, row: int) -> None:
    """Give one row its key of today; rows of batch files stay known under the one of old, which their answers name."""
    found = f"SELECT key, model, template, request, endpoint, owner FROM {table} WHERE rowid = ?"
    old, model, template, request, endpoint, owner = db.execute(found, (row,)).fetchone()
    asked = unpack(request)
    key = key_of(model, asked)
    if endpoint == "batch":
        state = "answered" if table == "calls" else "failed"
        call = (
            {"template": template, "json_schema": asked.pop("schema"), **asked} if state == "failed" else None
        )
        mailed = (old, key, model, "a file of long ago", state, owner, pack(call) if call else b"")
        db.execute("INSERT OR REPLACE INTO batched VALUES (?, ?, ?, ?, ?, ?, ?)", mailed)
    if not db.execute(f"UPDATE OR IGNORE {table} SET key = ? WHERE rowid = ?", (key, row)).rowcount:
        db.execute(f"{SUPERSEDED.format('calls')} key = ?", (old,))
        db.execute("UPDATE attempts SET key = ? WHERE key = ?", (key, old))
        db.execute("DELETE FROM calls WHERE rowid = ?", (row,))
