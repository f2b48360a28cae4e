"""The call store: what goes in comes out, survives a killed process and a second writer, and a full disk is named."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from judge_pipeline.calls.call import Call, CallUsage, Message, Reply, Sampling, TokenLogprob
from judge_pipeline.calls.store import CallStore, Finished
from judge_pipeline.calls.writer import StoreWriter
from judge_pipeline.common.errors import UserError


def call(text: str = "question", **sampling) -> Call:
    return Call(template="t", messages=(Message(role="user", content=text),), sampling=Sampling(**sampling))


def test_everything_about_an_answer_is_kept(tmp_path):
    reply = Reply(
        text="Bewertung: [[8]] 好",
        usage=CallUsage(input_tokens=7, output_tokens=5, cached_input_tokens=3),
        latency_s=1.5,
        logprobs=[TokenLogprob(token="8", logprob=-0.1, top={"8": -0.1, "7": -2.5})],
        structured=True,
    )
    asked = call(json_schema={"type": "object"})
    with_schema = asked.model_copy(update={"json_schema": {"type": "object"}, "prompt_version": "v1"})
    store = CallStore(tmp_path / "calls.sqlite")
    store.put([Finished(with_schema, "judge", reply, "http://here/v1", "prompt 1")])
    store.close()

    again = CallStore(tmp_path / "calls.sqlite")
    key = with_schema.key("judge")
    assert again.get(key) == reply
    assert again.find(key).owner == "prompt 1"
    request = again.request(key)
    assert request["messages"] == [{"role": "user", "content": "question"}]
    assert request["schema"] == {"type": "object"}
    assert request["prompt_version"] == "v1"
    assert again.get(call("other").key("judge")) is None


def test_the_key_covers_what_determines_an_answer_and_nothing_else():
    base = call()
    same = base.model_copy(update={"template": "another.name"})
    assert base.key("m") == same.key("m")
    assert base.key("m") == call(max_tokens=5).key("m"), "a whole answer is the same under any limit"
    others = [
        call("other"),
        call(temperature=0.5),
        call(seed=1),
        call(sample=1),
        call(logprobs=5),
        base.model_copy(update={"json_schema": {}}),
        base.model_copy(update={"prompt_version": "2"}),
    ]
    keys = {other.key("m") for other in others} | {base.key("m"), base.key("other model")}
    assert len(keys) == len(others) + 2


def test_failures_are_attempts_and_only_lasting_ones_are_reused(tmp_path):
    store = CallStore(tmp_path / "calls.sqlite")
    cut, late = call("cut"), call("late")
    store.put([Finished(cut, "m", Reply(text="half", failure="truncated", detail="d"))])
    store.put([Finished(late, "m", Reply(failure="timeout"))])
    assert store.get(cut.key("m")).failure == "truncated"
    assert store.find(cut.key("m"), lasting=()) is None
    assert store.get(late.key("m")) is None
    assert store.last_failure(late.key("m")).reply.failure == "timeout"
    store.put([Finished(cut, "m", Reply(text="whole"))])
    assert store.get(cut.key("m")).text == "whole"
    assert (store.totals().calls, store.totals().attempts_failed) == (1, 2)


def test_no_answer_that_was_paid_for_is_forgotten(tmp_path):
    """A renewed answer, one that came second, and attempts that were tried again: all their tokens count."""
    store = CallStore(tmp_path / "calls.sqlite")

    def reply(text, tokens, **more):
        return Reply(text=text, usage=CallUsage(input_tokens=tokens), **more)

    empty = reply("", 1, failure="empty_reply")
    store.put([Finished(call(), "m", reply("first", 10, earlier=[empty, empty]))])
    assert store.put([Finished(call(), "m", reply("late", 100))]) == {call().key("m")}
    store.put([Finished(call(), "m", reply("third", 1000))], replace=True)
    found = store.find(call().key("m"))
    assert found.reply.text == "third"
    assert found.usage.input_tokens == store.totals().usage.input_tokens == 1112


def test_the_first_answer_stays_unless_it_is_to_be_replaced(tmp_path):
    store = CallStore(tmp_path / "calls.sqlite")
    store.put([Finished(call(), "m", Reply(text="first"))])
    store.put([Finished(call(), "m", Reply(text="second"))])
    assert store.get(call().key("m")).text == "first"
    store.put([Finished(call(), "m", Reply(text="third"))], replace=True)
    assert store.get(call().key("m")).text == "third"


WRITER = """
    import sys
    from judge_pipeline.calls.store import CallStore, Finished
    from judge_pipeline.calls.call import Call, Message, Reply
    store = CallStore(sys.argv[1])
    for n in range(int(sys.argv[3])):
        asked = Call(template="t", messages=(Message(role="user", content=f"{sys.argv[2]} {n}"),))
        store.put([Finished(asked, "m", Reply(text=str(n)))])
        print(n, flush=True)
"""


def start_writer(path, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_share_a_file_and_lose_nothing(tmp_path):
    path = tmp_path / "calls.sqlite"
    writers = [start_writer(path, name, 100) for name in ("left", "right")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    store = CallStore(path)
    for name in ("left", "right"):
        assert all(store.get(call(f"{name} {n}").key("m")).text == str(n) for n in range(100))


def test_what_was_reported_stored_survives_kill_9(tmp_path):
    path = tmp_path / "calls.sqlite"
    writer = start_writer(path, "killed", 100_000)
    reported = -1
    for line in writer.stdout:
        reported = int(line)
        if reported == 50:
            writer.send_signal(signal.SIGKILL)
            break
    writer.wait()
    store = CallStore(path)
    assert all(store.get(call(f"killed {n}").key("m")) is not None for n in range(reported + 1))
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path):
    store = CallStore(tmp_path / "calls.sqlite")
    store.put([Finished(call("early"), "m", Reply(text="kept"))])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite then says what it says on a full disk

    async def fill():
        writer = StoreWriter(store)
        try:
            for n in range(200):
                await writer.put(Finished(call(f"{n}" * 500), "m", Reply(text=f"{n * n}" * 2000)))
        finally:
            await writer.close()

    with pytest.raises(UserError, match="disk is full") as caught:
        asyncio.run(fill())
    assert "kept" in caught.value.hint
    assert store.get(call("early").key("m")).text == "kept"


def test_many_replies_share_a_commit(tmp_path):
    store = CallStore(tmp_path / "calls.sqlite")
    commits = []
    put = store.put
    store.put = lambda group, **how: (commits.append(len(group)), put(group, **how))[1]  # type: ignore[method-assign]

    async def main():
        writer = StoreWriter(store)
        await asyncio.gather(*(writer.put(Finished(call(str(n)), "m", Reply(text="x"))) for n in range(50)))
        await writer.close()

    asyncio.run(main())
    assert sum(commits) == 50
    assert len(commits) < 10
    assert store.totals().calls == 50


def test_a_damaged_or_foreign_file_is_a_clear_error(tmp_path):
    path = tmp_path / "calls.sqlite"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        CallStore(path)
    other = tmp_path / "newer.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="another version"):
        CallStore(other)
