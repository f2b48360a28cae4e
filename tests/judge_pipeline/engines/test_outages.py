"""Errors that are a call's own, and errors that are the endpoint's: who is failed, what waits, what ends a run."""

from __future__ import annotations

import asyncio
import time

import pytest
from judge_servers import JudgeServer, is_check

from judge_pipeline.calls.call import Call, Message
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import EndOfCalls, Routing, StopCalls
from judge_pipeline.engines.endpoint import FRESH_STARTS, EndpointEngine
from judge_pipeline.engines.retries import RetryPolicy

QUICK = RetryPolicy(retries=2, base_s=0.005, longest_s=0.05)


def call(text="rate: Rating: [[5]]") -> Call:
    return Call(template="t", messages=(Message(role="user", content=text),))


def text_of(body):
    return body["messages"][-1]["content"]


def ask(urls, texts, *, hurried=lambda: False, **settings):
    """Replies to one call a text, all at a time; an exception in the place of a reply that did not come."""

    async def main():
        engine = EndpointEngine(urls, "judge", "key", **{"policy": QUICK, "timeout_s": 5, **settings})
        routing = Routing(hurried=hurried)
        try:
            asked = (engine.answer(call(text), routing) for text in texts)
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(main())


def failing(status, message="no", when=lambda body: True, **fields):
    """A fault: this error for such requests."""

    def fault(handler, body, attempt):
        if not when(body):
            return False
        handler.send_json({"error": {"message": message, **fields}}, status)
        return True

    return fault


@pytest.mark.parametrize(("status", "reason"), [(403, "refused"), (404, "http")])
def test_403_and_404_are_one_calls_own_as_long_as_others_are_answered(status, reason):
    with JudgeServer(failing(status, "flagged", lambda body: "bad" in text_of(body))) as server:
        bad, good = ask([server.url], ["bad", "good Rating: [["])
        alone = ask([server.url], ["bad"])[0]
        requests = server.requests
    assert (bad.failure, good.failure, alone.failure) == (reason, None, reason)
    assert f"HTTP {status}: flagged" in bad.detail
    assert requests <= 5  # a harmless call is asked only where no other was answered meanwhile


@pytest.mark.parametrize(("status", "words"), [(403, "refuses the key"), (404, "does not know the model")])
def test_403_and_404_for_a_harmless_call_end_the_run(status, words):
    with JudgeServer(failing(status)) as server, pytest.raises(UserError, match=words):
        raise ask([server.url], ["anything"])[0]


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (402, {}),
        (429, {"code": "insufficient_quota"}),
        (429, {"type": "exceeded_current_quota_error"}),
        (400, {"message": "Your credit balance is too low to access the API."}),
        (403, {"code": "billing_hard_limit_reached"}),
    ],
)
def test_no_credit_stops_and_fails_no_call(status, fields):
    with JudgeServer(failing(status, **fields)) as server:
        stopped = ask([server.url], ["a", "b", "c"], max_concurrency=1)
        assert server.requests == 1
    assert all(isinstance(one, EndOfCalls) for one in stopped)
    assert "quota is spent" in str(stopped[0])


def test_a_document_that_speaks_of_quotas_is_no_news_about_the_account():
    said = "cannot parse: the insufficient_quota of 1987 led to a strike of the fishermen at the quay"
    with JudgeServer(failing(400, said)) as server:
        reply = ask([server.url], [said.removeprefix("cannot parse: ")])[0]
    assert reply.failure == "http"


def test_another_endpoint_takes_over_from_one_without_credit():
    with JudgeServer(failing(402)) as poor, JudgeServer() as rich:
        replies = ask([poor.url, rich.url], [f"{n} Rating: [[" for n in range(6)])
        assert [reply.failure for reply in replies] == [None] * 6
        assert poor.requests <= 6
        assert len(rich.succeeded) == 6


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_outage_longer_than_all_retries_loses_nothing(status, capsys):
    back = time.monotonic() + 0.8
    with JudgeServer(failing(status, when=lambda body: time.monotonic() < back)) as server:
        replies = ask([server.url], [f"{n} Rating: [[" for n in range(8)])
    assert [reply.failure for reply in replies] == [None] * 8
    told = capsys.readouterr().err
    assert f"{server.url} is out of order (HTTP {status}: no): calls wait, for up to 15 min" in told
    assert f"{server.url} answers again" in told


def test_a_server_that_is_restarted_loses_nothing():
    with JudgeServer() as gone:
        pass

    async def main():
        engine = EndpointEngine([gone.url], "judge", "key", policy=QUICK, timeout_s=5)
        asked = asyncio.gather(*(engine.answer(call(f"{n} Rating: [[")) for n in range(4)))
        await asyncio.sleep(0.3)
        with JudgeServer(port=gone.server_address[1]):
            replies = await asked
            await engine.close()
        return replies

    assert [reply.failure for reply in asyncio.run(main())] == [None] * 4


def test_while_one_endpoint_is_down_its_calls_go_to_another_without_trying_it_each_time():
    async def main(urls):
        engine = EndpointEngine(urls, "judge", "key", policy=QUICK, timeout_s=5)
        try:
            first = await engine.answer(call("first Rating: [["))
            rest = [await engine.answer(call(f"{n} Rating: [[")) for n in range(20)]
            return [first, *rest]
        finally:
            await engine.close()

    with JudgeServer(failing(503)) as down, JudgeServer() as up:
        replies = asyncio.run(main([down.url, up.url]))
        assert [reply.failure for reply in replies] == [None] * 21
        assert len(up.succeeded) == 21
        assert sum(down.attempts[key] for key in up.succeeded) <= 2


def test_a_call_that_always_fails_by_itself_is_failed_and_the_endpoint_kept(capsys):
    poison = failing(500, "cannot", lambda body: "poison" in text_of(body))
    with JudgeServer(poison) as server:
        bad, good = ask([server.url], ["poison", "good Rating: [["], max_concurrency=1)
    assert (bad.failure, good.failure) == ("http", None)
    assert "after 3 attempts" in bad.detail
    assert "out of order" not in capsys.readouterr().err


def test_a_call_that_brings_the_server_down_each_time_is_given_up():
    crashed = [False]

    def crash(handler, body, attempt):
        crashed[0], was = "poison" in text_of(body), crashed[0]
        if not was and not crashed[0]:
            return False
        handler.send_json({"error": {"message": "crashed"}}, 500)
        return True

    with JudgeServer(crash) as server:
        reply = ask([server.url], ["poison"])[0]
        attempts = sum(count for body, count in server.attempts.items() if "poison" in body)
    assert reply.failure == "http"
    assert attempts == 3 * (FRESH_STARTS + 1)


def test_patience_is_a_setting_and_says_what_came_back():
    with JudgeServer(failing(503, "asleep")) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match="asleep") as caught:
            raise ask([server.url], ["a"], patience_s=0.4)[0]
        assert 0.4 <= time.monotonic() - began < 5
    assert "--judge.patience" in caught.value.hint


def test_whoever_wants_to_stop_need_not_wait_for_the_endpoint():
    with JudgeServer(failing(503)) as server, pytest.raises(StopCalls):
        raise ask([server.url], ["a"], hurried=lambda: True)[0]


def test_a_moments_trouble_is_not_worth_a_word(capsys):
    seen = []

    def few(handler, body, attempt):
        seen.append(is_check(body))
        if len(seen) > 4:
            return False
        handler.send_json({"error": {"message": "no"}}, 500)
        return True

    with JudgeServer(few) as server:
        assert ask([server.url], ["Rating: [["])[0].failure is None
    assert any(seen)
    assert capsys.readouterr().err == ""
