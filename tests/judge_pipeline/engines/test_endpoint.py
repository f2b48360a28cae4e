"""The endpoint engine over real HTTP: checks before the start, typed failures, retries, and what servers want changed."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_servers import JudgeServer, completion, is_check

from judge_pipeline.calls.call import Call, Message, Sampling
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import Routing, StopCalls
from judge_pipeline.engines.chat_protocol import MalformedReply, parse_completion
from judge_pipeline.engines.endpoint import EndpointEngine
from judge_pipeline.engines.endpoint_checks import check_endpoint, probe_schema, single_model
from judge_pipeline.engines.retries import RetryPolicy, retry_after

QUICK = RetryPolicy(retries=2, base_s=0.001)
SCHEMA = {"type": "object", "properties": {"rating": {"enum": [1, 2, 3]}}, "required": ["rating"]}


def call(text="rate: Rating: [[5]]", **changes) -> Call:
    return Call(template="t", messages=(Message(role="user", content=text),), **changes)


def answer(server, asked, routing=None, **settings):
    async def main():
        engine = EndpointEngine([server.url], "judge", "key", policy=QUICK, **{"timeout_s": 5, **settings})
        try:
            return await engine.answer(asked, routing or Routing())
        finally:
            await engine.close()

    return asyncio.run(main())


def check(url, model="judge", key="key"):
    async def main():
        engine = EndpointEngine([url], model, key)
        try:
            await check_endpoint(engine, attempts=1)
            return engine.context_window
        finally:
            await engine.close()

    return asyncio.run(main())


def test_an_endpoint_that_is_down_is_named_before_the_start():
    with JudgeServer() as server:
        url = server.url
    with pytest.raises(UserError, match="does not answer"):
        check(url)


def test_a_refused_key_an_unknown_model_and_a_page_that_is_no_api_are_named():
    with JudgeServer() as server:
        server.key = "right"
        with pytest.raises(UserError, match="refuses the key"):
            check(server.url, key="wrong")
        server.models = ["qwen", "llama"]
        with pytest.raises(UserError, match="does not know the model 'judge'") as caught:
            check(server.url, key="right")
        assert "llama, qwen" in caught.value.hint
        with pytest.raises(UserError, match="knows: llama, qwen"):
            asyncio.run(single_model(server.url, "right"))
        server.models = ["only"]
        server.model_info = {"max_model_len": 4096}
        assert check(server.url, model="only", key="right") == 4096
        assert asyncio.run(single_model(server.url, "right")) == "only"


def test_a_key_refused_on_the_way_ends_the_run():
    with JudgeServer() as server:
        server.key = "changed"
        with pytest.raises(UserError, match="refuses the key"):
            answer(server, call())


def test_schema_usage_and_logprobs_go_both_ways():
    def told(handler, body, attempt):
        reply = completion(json.dumps({"rating": 2}))
        token = {
            "token": "2",
            "logprob": -0.5,
            "top_logprobs": [{"token": "2", "logprob": -0.5}, {"token": "3", "logprob": -1}],
        }
        reply["choices"][0]["logprobs"] = {"content": [token]}
        handler.server.bodies.append(body)
        handler.send_json(reply)
        return True

    with JudgeServer(told) as server:
        reply = answer(
            server,
            call(json_schema=SCHEMA, sampling=Sampling(logprobs=5, seed=3, top_p=0.9)),
            extra_body={"top_k": 7},
        )
        body = server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (body["logprobs"], body["top_logprobs"], body["seed"], body["top_p"], body["top_k"]) == (
        True,
        5,
        3,
        0.9,
        7,
    )
    assert reply.structured
    assert reply.failure is None
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cached_input_tokens) == (
        100,
        10,
        40,
    )
    assert reply.logprobs[0].top == {"2": -0.5, "3": -1.0}
    assert reply.latency_s > 0


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (
            400,
            "This model's maximum context length is 4096 tokens, your request has 9000",
            "context_too_long",
        ),
        (400, "The response was filtered due to the prompt triggering content management policy", "refused"),
        (400, "messages: wrong role", "http"),
        (418, "teapot", "http"),
    ],
)
def test_refusals_of_the_call_itself_are_typed_and_not_retried(status, message, reason):
    def refuse(handler, body, attempt):
        handler.send_json({"error": {"message": message}}, status)
        return True

    with JudgeServer(refuse) as server:
        reply = answer(server, call())
        assert server.requests == 1
    assert reply.failure == reason
    assert message[:30] in reply.detail


def test_patience_ends_in_the_last_reason():
    def hang(handler, body, attempt):
        if not is_check(body):
            time.sleep(1)
            handler.reset()
        return not is_check(body)

    with JudgeServer(hang) as server:
        reply = answer(server, call(), timeout_s=0.15)
    assert reply.failure == "timeout"
    assert "after 3 attempts" in reply.detail
    with JudgeServer(lambda h, b, a: h.send_json(completion("  ")) or True) as server:
        reply = answer(server, call())
        assert (reply.failure, server.requests) == ("empty_reply", 3)
        assert reply.usage.input_tokens == 100  # paid for, so counted
    with JudgeServer(lambda h, b, a: not is_check(b) and (h.reset() or True)) as server:
        assert answer(server, call()).failure == "http"


def test_retry_after_is_honoured():
    seen = []

    def busy_once(handler, body, attempt):
        seen.append(time.monotonic())
        if attempt > 1:
            return False
        handler.send_json({"error": {"message": "busy"}}, 429, {"Retry-After": "0.3"})
        return True

    with JudgeServer(busy_once) as server:
        assert answer(server, call()).failure is None
    assert seen[1] - seen[0] >= 0.3


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text(max_size=12)))
def test_any_retry_after_header_gives_a_sane_pause(headers):
    assert 0 <= retry_after(headers) <= 600


def test_retry_after_as_seconds_milliseconds_and_date():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=40.0) == 60
    assert retry_after({"retry-after": "999999"}) == 600
    delays = [RetryPolicy(base_s=1, longest_s=8).delay(n, 2.0, random.Random(n)) for n in range(20)]
    assert all(2 <= delay <= 10 for delay in delays)


def test_a_server_without_schemas_is_found_out_and_asked_in_text():
    def no_schema(handler, body, attempt):
        if "response_format" in body:
            handler.send_json({"error": {"message": "response_format is not supported"}}, 400)
            return True
        return False

    async def main(url):
        engine = EndpointEngine([url], "judge", "key", policy=QUICK)
        able = await probe_schema(engine)
        reply = await engine.answer(call(json_schema=SCHEMA))
        await engine.close()
        return able, reply

    with JudgeServer(no_schema) as server:
        able, reply = asyncio.run(main(server.url))
    assert not able
    assert not reply.structured
    assert reply.failure is None


def test_parameters_a_server_refuses_are_left_out_or_renamed_once():
    def picky(handler, body, attempt):
        message = None
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        elif "temperature" in body:
            message = "Unsupported value: 'temperature' does not support 0."
        if message:
            handler.send_json({"error": {"message": message}}, 400)
        return message is not None

    async def main(url):
        engine = EndpointEngine([url], "judge", "key", policy=QUICK)
        replies = [await engine.answer(call(f"{n} Rating: [[")) for n in range(3)]
        await engine.close()
        return replies

    with JudgeServer(picky) as server:
        replies = asyncio.run(main(server.url))
        assert [reply.failure for reply in replies] == [None] * 3
        assert server.requests == 5  # two lessons, three answers
        assert server.bodies[0]["max_completion_tokens"] == 1024


def test_a_prompt_stays_with_one_endpoint_and_prompts_spread():
    async def main(urls):
        engine = EndpointEngine(urls, "judge", "key", policy=QUICK)
        routings = [Routing(affinity=f"prompt {p}") for p in range(20) for _ in range(3)]
        await asyncio.gather(
            *(engine.answer(call(f"{n} Rating: [["), routing) for n, routing in enumerate(routings))
        )
        where = [engine.where(routing) for routing in routings]
        await engine.close()
        return where

    with JudgeServer() as left, JudgeServer() as right:
        where = asyncio.run(main([left.url, right.url]))
        assert all(len(set(where[n : n + 3])) == 1 for n in range(0, 60, 3))
        assert left.requests == where.count(left.url)
        assert right.requests == where.count(right.url)
        assert min(left.requests, right.requests) > 10


def test_an_endpoint_that_goes_away_is_left_for_another():
    async def main(urls):
        engine = EndpointEngine(urls, "judge", "key", policy=RetryPolicy(3, 0.001))
        replies = await asyncio.gather(
            *(engine.answer(call(f"{n} Rating: [["), Routing(affinity=str(n))) for n in range(20))
        )
        await engine.close()
        return replies

    with JudgeServer() as gone:
        pass
    with JudgeServer() as there:
        replies = asyncio.run(main([gone.url, there.url]))
    assert [reply.failure for reply in replies] == [None] * 20


def test_when_nobody_is_there_any_more_the_run_ends_instead_of_failing_everything():
    async def main(url):
        engine = EndpointEngine([url], "judge", "key", policy=QUICK, patience_s=0)
        try:
            await asyncio.gather(*(engine.answer(call(str(n))) for n in range(40)))
        finally:
            await engine.close()

    with JudgeServer() as server:
        pass
    with pytest.raises(UserError, match="is gone"):
        asyncio.run(main(server.url))


def test_a_call_that_is_not_admitted_is_not_made():
    def refuse():
        raise StopCalls("limit")

    with JudgeServer() as server:
        with pytest.raises(StopCalls):
            answer(server, call(), Routing(admit=refuse))
        assert server.requests == 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "usage", "logprobs", "finish_reason"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_body_breaks_the_parser(value):
    try:
        reply = parse_completion(json.dumps(value))
    except MalformedReply:
        return
    assert reply.failure is not None or reply.text.strip()
