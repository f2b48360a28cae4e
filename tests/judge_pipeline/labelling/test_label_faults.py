"""A labelling run whose endpoint stops answering: what is kept, what the same command does again, what is said."""

from __future__ import annotations

import json
import threading
import time

import pytest
from judge_servers import JudgeServer, is_check, write_prompts

from judge_pipeline.cli import main
from judge_pipeline.common.record_files import read_labels


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=3, answers=2)
    return path


def label(urls, prompts, run, *more):
    judge = ["--judge.base-url", *urls, "--judge.model", "judge", "--judge.backoff", "0.005"]
    quick = ["--judge.retries", "1", "--retrieval", "bm25"]
    return main(["label", str(prompts), "--output", str(run), *judge, *quick, *more])


def summary(run):
    return json.loads((run / "summary.json").read_text())


def reasons(run):
    return {failure.reason for row in read_labels(run) for failure in row.failures}


def test_spent_credit_stops_cleanly_and_the_same_command_goes_on(prompts, tmp_path, capsys):
    answered = []

    def poor(handler, body, attempt):
        if is_check(body) or len(answered) < 8:
            answered.append(body)
            return False
        handler.send_json({"error": {"message": "top up your account", "code": 402}}, 402)
        return True

    run = tmp_path / "run"
    with JudgeServer(poor) as server:
        assert label([server.url], prompts, run, "--judge.max-concurrency", "2") == 3
        asked = server.requests
        assert asked <= len(server.succeeded) + 2  # nobody goes on asking a spent account
        assert reasons(run) == {"stopped"}
        found = summary(run)
        assert "top up your account" in found["stopped"]
        assert found["store"]["failed_attempts"] == 0
        assert "the account's quota is spent" in capsys.readouterr().out
        server.fault = None
        assert label([server.url], prompts, run) == 0
        assert all(count == 1 for count in server.succeeded.values())
    assert summary(run)["labelled"] == 6


@pytest.mark.parametrize("reason", ["http", "timeout"])
def test_rows_that_failed_for_the_endpoint_are_done_again_by_the_same_command(prompts, tmp_path, reason):
    def ill(handler, body, attempt):
        if is_check(body) or "document 1" not in body["messages"][-1]["content"].lower():
            return False
        if reason == "timeout":
            time.sleep(1.5)
        handler.send_json({"error": {"message": "cannot"}}, 500)
        return True

    run = tmp_path / "run"
    with JudgeServer(ill) as server:
        patience = ["--judge.timeout", "1.2" if reason == "timeout" else "30"]
        assert label([server.url], prompts, run, *patience) == 3
        assert reasons(run) == {reason}
        server.fault = None
        assert label([server.url], prompts, run) == 0
        assert all(count == 1 for count in server.succeeded.values())
    assert summary(run)["labelled"] == 6


def test_an_endpoint_that_is_down_at_the_start_leaves_the_work_to_the_other(prompts, tmp_path):
    with JudgeServer() as gone:
        pass
    with JudgeServer() as there:
        assert label([gone.url, there.url], prompts, tmp_path / "run") == 0


def test_an_endpoint_that_goes_for_a_while_costs_a_run_nothing(prompts, tmp_path, capsys):
    began = []

    def away(handler, body, attempt):
        if not is_check(body):
            began.append(time.monotonic())
        if not began or not 0.05 < time.monotonic() - began[0] < 0.8:
            return False
        handler.send_json({"error": {"message": "restarting"}}, 503)
        return True

    run = tmp_path / "run"
    with JudgeServer(away, latency=0.02) as server:
        assert label([server.url], prompts, run, "--judge.max-concurrency", "4") == 0
        assert all(count == 1 for count in server.succeeded.values())
    assert "is out of order (HTTP 503: restarting)" in capsys.readouterr().err


def test_patience_is_a_setting(prompts, tmp_path, capsys):
    with JudgeServer() as server:

        def leave():
            while server.requests < 3:
                time.sleep(0.01)
            server.fault = lambda handler, body, attempt: handler.send_json({}, 500) or True

        threading.Thread(target=leave, daemon=True).start()
        server.latency = 0.05
        assert label([server.url], prompts, tmp_path / "run", "--judge.patience", "0.005") == 2
    assert "is gone" in capsys.readouterr().err
