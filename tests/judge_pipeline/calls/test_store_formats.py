"""A store that an earlier version wrote goes on: keys without the token limit, batch files that are still out."""

from __future__ import annotations

import json
import sqlite3

from judge_pipeline.calls.batch_book import BatchBook
from judge_pipeline.calls.call import Call, Message, Sampling, key_of
from judge_pipeline.calls.schema import pack
from judge_pipeline.calls.store import CallStore
from judge_pipeline.engines.batch_answers import take_in

FORMAT_1 = """
CREATE TABLE calls (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, template TEXT NOT NULL, request BLOB NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT NOT NULL, structured INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,
    latency_s REAL NOT NULL, logprobs BLOB, endpoint TEXT NOT NULL, owner TEXT NOT NULL, finished REAL NOT NULL);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, template TEXT NOT NULL,
    request BLOB NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, text TEXT NOT NULL,
    finish_reason TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL, latency_s REAL NOT NULL, endpoint TEXT NOT NULL, owner TEXT NOT NULL,
    finished REAL NOT NULL);
CREATE INDEX attempts_by_key ON attempts (key, id);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE batched (key TEXT PRIMARY KEY, file TEXT NOT NULL, owner TEXT NOT NULL, call BLOB NOT NULL);
PRAGMA user_version = 1;
"""


def call(text: str, max_tokens: int = 2048) -> Call:
    return Call(
        template="t", messages=(Message(role="user", content=text),), sampling=Sampling(max_tokens=max_tokens)
    )


def old_key(asked: Call) -> str:
    return key_of("judge", asked.asked(), with_limit=True)


def answer(db, asked: Call, text: str, finished: float) -> None:
    row = (
        old_key(asked),
        "judge",
        "t",
        pack(asked.asked()),
        text,
        "stop",
        0,
        10,
        2,
        0,
        0.5,
        None,
        "",
        "p",
        finished,
    )
    db.execute("INSERT INTO calls VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", row)


def write_old(path):
    db = sqlite3.connect(path)
    db.executescript(FORMAT_1)
    answer(db, call("one"), "first", 1.0)
    answer(db, call("one", 4096), "bought again", 2.0)
    answer(db, call("two", 512), "short", 3.0)
    cut = call("cut")
    row = (
        1,
        old_key(cut),
        "judge",
        "t",
        pack(cut.asked()),
        "truncated",
        "d",
        "half",
        "length",
        7,
        2048,
        0,
        1.0,
        "",
        "p",
        4.0,
    )
    db.execute("INSERT INTO attempts VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", row)
    mailed = call("mailed")
    db.execute(
        "INSERT INTO batched VALUES (?, 'ask.jsonl', 'p', ?)",
        (old_key(mailed), pack(mailed.model_dump(mode="json"))),
    )
    db.commit()
    db.close()


def test_answers_and_their_cost_stay_and_the_limit_leaves_the_key(tmp_path):
    write_old(tmp_path / "calls.sqlite")
    for _ in range(2):  # the second time there is nothing left to do
        store = CallStore(tmp_path / "calls.sqlite")
        assert store.get(call("one", 100).key("judge")).text == "first"
        assert store.find(call("one").key("judge")).usage.input_tokens == 20
        assert store.get(call("two").key("judge")).text == "short"
        cut = store.find(call("cut", 9).key("judge"))
        assert (cut.reply.failure, cut.max_tokens) == ("truncated", 2048)
        assert store.totals().usage.input_tokens == 37
        store.close()


def test_rows_that_were_taken_for_lost_are_known_when_they_come(tmp_path):
    """A second answer file was once refused because the first had not held its rows."""
    write_old(tmp_path / "calls.sqlite")
    lost = call("lost", 512)
    db = sqlite3.connect(tmp_path / "calls.sqlite")
    row = (
        old_key(lost),
        "judge",
        "t",
        pack(lost.asked()),
        "batch_error",
        "no row",
        "",
        "error",
        0,
        0,
        0,
        0.0,
        "batch",
    )
    db.execute("INSERT INTO attempts VALUES (9,?,?,?,?,?,?,?,?,?,?,?,?,?,'p',5.0)", row)
    db.commit()
    db.close()
    store = CallStore(tmp_path / "calls.sqlite")
    assert store.last_failure(lost.key("judge")).reply.failure == "batch_error"
    body = {"choices": [{"message": {"content": "Late."}, "finish_reason": "stop"}]}
    back = {"custom_id": old_key(lost), "response": {"status_code": 200, "body": body}, "error": None}
    (tmp_path / "back.jsonl").write_text(json.dumps(back) + "\n")
    assert take_in([tmp_path / "back.jsonl"], BatchBook(store)).taken_in == 1
    assert store.get(lost.key("judge")).text == "Late."


def test_a_file_that_was_out_comes_back(tmp_path):
    write_old(tmp_path / "calls.sqlite")
    store = CallStore(tmp_path / "calls.sqlite")
    book, mailed = BatchBook(store), call("mailed")
    assert book.out() == {"ask.jsonl": 1}
    book.adopt("judge")
    assert book.waits_in(mailed.key("judge")) == "ask.jsonl"
    body = {"choices": [{"message": {"content": "Here."}, "finish_reason": "stop"}]}
    row = {"custom_id": old_key(mailed), "response": {"status_code": 200, "body": body}, "error": None}
    (tmp_path / "back.jsonl").write_text(json.dumps(row) + "\n")
    assert take_in([tmp_path / "back.jsonl"], book).taken_in == 1
    assert store.get(mailed.key("judge")).text == "Here."
    assert take_in([tmp_path / "back.jsonl"], book).known == 1
