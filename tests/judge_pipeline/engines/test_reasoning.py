"""Judges that think before they reply: their thinking set apart, given room, counted; and the gateways they sit behind."""

from __future__ import annotations

import asyncio
import json

import pytest
from judge_servers import JudgeServer, completion, is_check, sane_text, write_prompts

from judge_pipeline.calls.call import Call, CallUsage, Message, Reply, Sampling
from judge_pipeline.calls.store import CallStore, Finished
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.cli import main
from judge_pipeline.engines.chat_protocol import MalformedReply, reply_from_body
from judge_pipeline.engines.endpoint import ROOM_TO_THINK, EndpointEngine
from judge_pipeline.engines.open import JudgeConfig
from judge_pipeline.engines.retries import RetryPolicy
from judge_pipeline.replies.ratings import RatingShape

HALF = "The draft was [[3]]. "


def body_with(usage=None, finish="stop", **message):
    body = completion("", finish)
    body["choices"][0]["message"] = {"role": "assistant", **message}
    body["usage"] |= usage or {}
    return body


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>a [[3]]</think>[[8]]", "[[8]]"),
        ("a [[3]]</think>\n[[8]]", "\n[[8]]"),  # the template wrote the opening tag
        ("<think>a [[3]]", ""),
        ("\n<thinking>\na [[3]]", ""),
        ("[THINK]a[/THINK]b", "b"),
        ("<reasoning>a", ""),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a</think>\n<think>b [[3]]", ""),
        ("◁think▷a◁/think▷b", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b", "b"),
        ("It quotes the tag <think> and no more. [[8]]", "It quotes the tag <think> and no more. [[8]]"),
    ],
)
def test_thinking_in_the_text_is_set_apart_closed_or_not(text, reply):
    found, start = after_thinking(text)
    assert found == reply
    assert text[start:] == reply


def test_thinking_that_never_ended_is_no_reply():
    shape = RatingShape()
    assert shape.read(Reply(text="<think>Rating: [[3]]", finish_reason="length")).reason == "truncated"
    assert shape.read(Reply(text="<think>Rating: [[3]]")).reason == "empty_reply"
    assert reply_from_body(body_with(content="<think>Rating: [[3]]")).failure == "empty_reply"
    quoting = json.dumps({"analysis": "It says </think> [[2]]", "rating": 8})
    assert shape.read(Reply(text=quoting)).points == 8


@pytest.mark.parametrize(
    "message",
    [
        {"content": "[[8]]", "reasoning_content": HALF},
        {"content": "[[8]]", "reasoning": HALF},
        {"content": [{"type": "text", "text": "[[8]]"}], "reasoning_content": HALF},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": HALF}]},
                {"type": "text", "text": "[[8]]"},
            ]
        },
        {"content": [{"type": "reasoning", "text": HALF}, {"type": "output_text", "text": "[[8]]"}]},
    ],
)
def test_thinking_apart_from_the_content_is_never_the_reply_and_is_counted(message):
    reply = reply_from_body(body_with(**message))
    assert (reply.text, reply.failure) == ("[[8]]", None)
    assert 5 <= reply.usage.reasoning_tokens < reply.usage.output_tokens == 10


def test_content_that_is_a_list_is_read_and_nothing_else_is_taken_for_text():
    assert reply_from_body(body_with(content=[{"type": "text", "text": "a "}, "b"])).text == "a b"
    assert reply_from_body(body_with(content=[])).failure == "empty_reply"
    assert reply_from_body(body_with(content=[{"type": "image", "url": "x"}])).failure == "empty_reply"
    assert reply_from_body(body_with(content=None, reasoning_content=HALF)).failure == "empty_reply"
    cut = reply_from_body(body_with(content=None, reasoning_content=HALF, finish="length"))
    assert cut.failure == "truncated"
    with pytest.raises(MalformedReply):
        reply_from_body(body_with(content={"text": "a"}))


def test_tokens_for_thinking_are_those_told_and_always_part_of_the_output():
    details = {"completion_tokens_details": {"reasoning_tokens": 70}}
    within = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110, **details}
    beside = {"prompt_tokens": 10, "completion_tokens": 30, "total_tokens": 110, **details}
    for usage in (within, beside):
        found = reply_from_body(body_with(content="[[8]]", usage=usage)).usage
        assert (found.output_tokens, found.reasoning_tokens) == (100, 70)
    assert reply_from_body(body_with(content="[[8]]")).usage.reasoning_tokens == 0


def test_the_store_keeps_them_also_one_of_an_earlier_version(tmp_path):
    path = tmp_path / "calls.sqlite"
    store = CallStore(path)
    for table in ("calls", "attempts"):
        with store.writing() as db:
            db.execute(f"ALTER TABLE {table} DROP COLUMN reasoning_tokens")
    store.close()
    store = CallStore(path)
    asked = Call(template="t", messages=(Message(role="user", content="q"),))
    reply = Reply(text="a", usage=CallUsage(input_tokens=5, output_tokens=9, reasoning_tokens=7))
    store.put([Finished(asked, "judge", reply)])
    store.put([Finished(asked, "judge", reply)], replace=True)
    assert store.find(asked.key("judge")).reply.usage.reasoning_tokens == 7
    assert store.totals().usage.reasoning_tokens == 14
    store.close()


def thinker(needed=3000, window=None):
    """A judge that thinks for so many tokens before every reply, and refuses what does not fit its window."""

    def fault(handler, body, attempt):
        if window and body["max_tokens"] > window:
            handler.send_json({"error": {"message": f"maximum context length is {window} tokens"}}, 400)
            return True
        cut = body["max_tokens"] < needed + 10
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": body["max_tokens"] if cut else needed + 10,
            "completion_tokens_details": {"reasoning_tokens": body["max_tokens"] if cut else needed},
        }
        text = None if cut else sane_text(body)
        handler.server.bodies.append(body)
        finish = "length" if cut else "stop"
        handler.send_json(body_with(usage=usage, finish=finish, content=text, reasoning_content=HALF))
        return True

    return fault


def label(server, tmp_path, *more):
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, prompts=1, answers=2)
    command = ["label", str(prompts), "--output", str(tmp_path / "run"), "--judge.base-url", server.url]
    return main([*command, "--judge.model", "judge", "--retrieval", "bm25", *more])


def limits(server):
    return {body["max_tokens"] for body in server.bodies if not is_check(body)}


@pytest.mark.parametrize("structured", ["auto", "off"])
def test_the_token_limit_is_for_the_reply_and_thinking_is_counted_and_priced(tmp_path, structured):
    with JudgeServer(thinker()) as server:
        prices = ["--price-input", "0", "--price-output", "1000"]
        more = [
            "--max-tokens",
            "200",
            "--judge.structured",
            structured,
            "--judge.max-concurrency",
            "1",
            *prices,
        ]
        assert label(server, tmp_path, *more) == 0
        asked = limits(server)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    made = summary["calls"]["made"]
    # The reply that showed it to think was cut, and is asked for again with more room.
    assert asked <= {200, 200 + ROOM_TO_THINK, 400 + ROOM_TO_THINK}
    if structured == "auto":  # the probe has shown that it thinks: no reply was cut for want of room
        assert asked == {200 + ROOM_TO_THINK}
        tokens = summary["tokens"]
        assert (tokens["output"], tokens["reasoning"]) == (3010 * made, 3000 * made)
        assert summary["cost"]["total"] == pytest.approx(3.01 * made)
        assert "8,192 tokens more, to think with" in next(iter(summary["fields"].values()))


@pytest.mark.parametrize(
    ("settings", "room", "fields"),
    [
        (["--judge.reasoning-effort", "low"], 4096, {"reasoning_effort": "low"}),
        (["--judge.reasoning-effort", "none"], 8192, {"reasoning_effort": "none"}),
        (["--judge.thinking-budget", "5000"], 5000, {}),
        (
            ["--judge.thinking-budget", "5000", "--judge.thinking-field", "reasoning.max_tokens"],
            5000,
            {"reasoning": {"max_tokens": 5000}},
        ),
        (
            ["--judge.thinking-budget", "0", "--judge.reasoning-effort", "high"],
            0,
            {"reasoning_effort": "high"},
        ),
    ],
)
def test_effort_and_budget_are_settings(tmp_path, settings, room, fields):
    with JudgeServer(thinker(0 if room == 0 else 3000)) as server:
        assert label(server, tmp_path, "--max-tokens", "200", *settings) == 0
        assert limits(server) == {200 + room}
        for body in server.bodies:
            assert {
                name: body.get(name) for name in ("reasoning_effort", "reasoning") if name in body
            } == fields


def test_effort_as_a_setting_is_the_same_judge_as_effort_in_the_body():
    told = JudgeConfig(extra_body={"reasoning_effort": "low"})
    assert JudgeConfig(reasoning_effort="low").body == told.body
    with pytest.raises(ValueError, match="thinking_budget names none"):
        JudgeConfig(thinking_field="thinking_budget")


def test_a_prompt_that_leaves_no_room_to_think_is_asked_without():
    async def main(url):
        engine = EndpointEngine([url], "judge", "key", policy=RetryPolicy(0, 0.001), dialect=dialect)
        asked = Call(
            template="t",
            messages=(Message(role="user", content="Rating: [["),),
            sampling=Sampling(max_tokens=200),
        )
        try:
            return await engine.answer(asked)
        finally:
            await engine.close()

    dialect = JudgeConfig(thinking_budget=5000).dialect()
    with JudgeServer(thinker(0, window=3000)) as server:
        assert asyncio.run(main(server.url)).failure is None


def test_room_to_think_is_taken_from_the_window(tmp_path, capsys):
    with JudgeServer(thinker(100)) as server:
        server.model_info = {"max_model_len": 4000}
        assert label(server, tmp_path, "--judge.thinking-budget", "3900") == 2
    assert "window" in capsys.readouterr().err


def test_an_alias_is_used_with_one_flag_and_headers_are_sent(tmp_path, capsys, monkeypatch):
    seen = []

    class Gateway(JudgeServer):
        def authorized(self, handler):
            seen.append((handler.headers.get("X-Team"), handler.headers.get("X-Key")))
            return True

    monkeypatch.setenv("GATE_KEY", "secret")
    with Gateway() as server:
        server.models = ["judge-2026-01-01"]
        assert label(server, tmp_path) == 2
        assert "--judge.unlisted-model" in capsys.readouterr().err
        headers = ["--judge.extra-headers", "X-Team=judges,X-Key=$GATE_KEY"]
        seen.clear()
        assert label(server, tmp_path, "--judge.unlisted-model", *headers) == 0
        assert set(seen) == {("judges", "secret")}
        assert "secret" not in (tmp_path / "run" / "run.yaml").read_text()
        monkeypatch.delenv("GATE_KEY")
        (tmp_path / "run" / "labels.jsonl").unlink()
        assert label(server, tmp_path, "--judge.unlisted-model", *headers) == 2
        assert "$GATE_KEY, which is not set" in capsys.readouterr().err
