"""Room for a reply: a cut one is asked for again with more, and only that one; a whole one is never bought again."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from judge_servers import JudgeServer, completion, is_check, sane_text, write_prompts

from judge_pipeline.calls.store import CallStore
from judge_pipeline.cli import main
from judge_pipeline.common.record_files import read_labels


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=2, answers=2)
    return path


def label(server, prompts, run, *more):
    judge = ["--judge.base-url", server.url, "--judge.model", "judge", "--judge.backoff", "0.001"]
    return main(["label", str(prompts), "--output", str(run), *judge, "--retrieval", "bm25", *more])


def asks_about(handler, body):
    return "logic" in body["messages"][0]["content"].lower()[:400]


def long_winded(needed):
    """Calls about logic are cut unless they have room for so many tokens."""

    def fault(handler, body, attempt):
        if asks_about(handler, body) and body["max_tokens"] < needed:
            handler.send_json(completion(sane_text(body)[:15], finish="length"))
            return True
        return False

    return fault


def rooms(server):
    """How many requests about logic had so much room."""
    asked = [json.loads(key) for key in server.attempts for _ in range(server.attempts[key])]
    return Counter(body["max_tokens"] for body in asked if asks_about(None, body))


def test_a_cut_reply_gets_more_room_by_itself_and_only_that_call(prompts, tmp_path):
    run = tmp_path / "run"
    with JudgeServer(long_winded(700)) as server:
        assert label(server, prompts, run, "--max-tokens", "200") == 0
        assert rooms(server) == {200: 4, 400: 4, 800: 4}
        others = [body for body in server.bodies if not asks_about(None, body) and not is_check(body)]
        assert {body["max_tokens"] for body in others} == {200}
        summary = json.loads((run / "summary.json").read_text())
        requests = server.requests - 1  # the probe
        assert summary["calls"]["made"] == requests
        assert summary["tokens"]["input"] == summary["store"]["tokens"]["input"] == 100 * requests
        usage = sum(row.usage.input_tokens for row in read_labels(run))
        assert usage == pytest.approx(100 * requests, abs=1), "cut replies were paid for too"


def test_json_that_is_closed_is_whole_though_white_space_follows_to_the_limit(prompts, tmp_path):
    def trailing(handler, body, attempt):
        if not asks_about(handler, body):
            return False
        handler.send_json(completion(sane_text(body) + " " * 99, finish="length"))
        return True

    with JudgeServer(trailing) as server:
        assert label(server, prompts, tmp_path / "run") == 0
        assert rooms(server) == {2048: 4}


def test_there_is_a_ceiling_and_raising_it_goes_on_from_there(prompts, tmp_path):
    run = tmp_path / "run"
    with JudgeServer(long_winded(1500)) as server:
        few = ["--max-tokens", "200", "--max-tokens-ceiling", "900"]
        assert label(server, prompts, run, *few) == 3
        assert rooms(server) == {200: 4, 400: 4, 800: 4, 900: 4}
        failures = [failure for row in read_labels(run) for failure in row.failures]
        assert {(one.dimension, one.reason) for one in failures} == {("logicality", "truncated")}
        before = server.requests
        assert label(server, prompts, run, *few) == 3
        assert server.requests == before
        assert label(server, prompts, run, "--max-tokens", "200", "--retry-failed") == 0
        assert rooms(server) == {200: 4, 400: 4, 800: 4, 900: 4, 1800: 4}


def test_more_room_buys_no_finished_reply_again(prompts, tmp_path):
    run = tmp_path / "run"
    with JudgeServer() as server:
        assert label(server, prompts, run, "--max-tokens", "512") == 0
        before, rows = server.requests, (run / "labels.jsonl").read_text()
        (run / "labels.jsonl").unlink()
        assert label(server, prompts, run, "--max-tokens", "4096") == 0
        assert server.requests == before
        assert (run / "labels.jsonl").read_text() == rows


def test_the_judges_window_bounds_the_room(prompts, tmp_path):
    with JudgeServer(long_winded(10_000)) as server:
        server.model_info = {"max_model_len": 3000}
        assert label(server, prompts, tmp_path / "run", "--max-tokens", "800") == 3
        assert rooms(server) == {800: 4, 1600: 4, 2900: 4}  # 100 tokens of prompt, as the server counts


def test_a_judge_that_refuses_more_room_leaves_the_reply_cut(prompts, tmp_path):
    def narrow(handler, body, attempt):
        if body["max_tokens"] > 1000:
            words = "This model's maximum context length is 1500 tokens"
            handler.send_json({"error": {"message": words}}, 400)
            return True
        return long_winded(5000)(handler, body, attempt)

    run = tmp_path / "run"
    with JudgeServer(narrow) as server:
        assert label(server, prompts, run, "--max-tokens", "800") == 3
        reasons = {failure.reason for row in read_labels(run) for failure in row.failures}
        assert reasons == {"truncated"}
        before = server.requests
        assert label(server, prompts, run, "--max-tokens", "800") == 3
        assert server.requests == before


def test_the_money_holds_though_replies_are_empty(prompts, tmp_path):
    """Every attempt that was answered counts, and no attempt begins that --max-cost has no money for."""

    def empty(handler, body, attempt):
        if is_check(body):
            return False
        handler.send_json(completion(""))
        return True

    run = tmp_path / "run"
    with JudgeServer(empty) as server:
        limits = ["--max-cost", "1", "--price-input", "1000", "--price-output", "0"]  # a reply costs 0.1
        more = [*limits, "--judge.max-concurrency", "2", "--judge.retries", "5"]
        assert label(server, prompts, run, *more) == 3
        paid = server.requests - 1
        assert 10 <= paid <= 12
        summary = json.loads((run / "summary.json").read_text())
        assert summary["cost"]["total"] == pytest.approx(0.1 * paid)
        assert summary["store"]["tokens"]["input"] == 100 * paid
        assert CallStore(run / "calls.sqlite").totals().usage.input_tokens == 100 * paid
        assert "--max-cost 1" in summary["stopped"]
        server.fault = None
        assert label(server, prompts, run, "--retry-failed") == 0


def test_attempts_that_were_tried_again_are_part_of_an_answers_cost(prompts, tmp_path):
    run = tmp_path / "run"

    def empty_at_first(handler, body, attempt):
        if attempt > 2 or is_check(body):
            return False
        handler.send_json(completion(""))
        return True

    with JudgeServer(empty_at_first) as server:
        assert label(server, prompts, run) == 0
        paid = 100 * (server.requests - 1)
        summary = json.loads((run / "summary.json").read_text())
        assert summary["tokens"]["input"] == summary["store"]["tokens"]["input"] == paid
        assert sum(row.usage.input_tokens for row in read_labels(run)) == pytest.approx(paid, abs=1)
