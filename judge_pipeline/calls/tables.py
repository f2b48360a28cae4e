"""The tables of the call store: answers, failed attempts, notes of a run, and calls that wait for a batch file."""

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
