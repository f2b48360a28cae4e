"""Batch files: the same labels as from an endpoint, in a few rounds, and every bad row named and typed."""

from __future__ import annotations

import json

import pytest
from batch_helpers import answer_file, label, rows_of
from judge_servers import JudgeServer, is_check, write_prompts

from judge_pipeline.cli import main
from judge_pipeline.common.record_files import read_labels


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=2, answers=2)
    return path


def run_rounds(prompts, run, tmp_path, most=5):
    """Ask and answer until nothing is pending; returns the number of rounds."""
    out, answers = tmp_path / "ask.jsonl", tmp_path / "answers.jsonl"
    label(prompts, run, "--judge.batch-out", out)
    for number in range(1, most):
        answer_file(out, answers)
        out.unlink()
        code = label(prompts, run, "--judge.batch-in", answers, "--judge.batch-out", out)
        if not out.exists():
            assert code == 0
            return number
    raise AssertionError("still pending")


def test_two_rounds_give_the_labels_an_endpoint_gives(prompts, tmp_path):
    assert run_rounds(prompts, tmp_path / "batch", tmp_path) == 2
    with JudgeServer() as server:
        url = ["--judge.base-url", server.url]
        assert label(prompts, tmp_path / "live", *url) == 0
    batch, live = list(read_labels(tmp_path / "batch")), list(read_labels(tmp_path / "live"))
    assert batch == live  # scores, evidence and usage


def test_until_the_answers_come_nothing_has_failed(prompts, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "ask.jsonl"
    assert label(prompts, run, "--judge.batch-out", out) == 4
    told = capsys.readouterr()
    count = len(rows_of(out))
    assert f"{count} calls written to {out}" in told.err
    assert "run the same command again with --judge.batch-in" in told.err
    assert "nothing failed" in told.err
    assert "0 failed, 4 wait for batch answers" in told.out
    assert not any(line.startswith("no ") for line in told.out.splitlines()), told.out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["failed"], summary["pending"], summary["failures"]) == (0, 4, {})
    assert summary["batch"] == {"written": {str(out): count}, "out": {str(out): count}}
    assert summary["calls"]["made"] == 0
    rows = list(read_labels(run))
    assert len(rows) == 4
    assert {failure.reason for row in rows for failure in row.failures} == {"pending"}
    keys = [row["custom_id"] for row in rows_of(out)]
    assert len(keys) == len(set(keys)) > 8
    first = [row["body"] for row in rows_of(out)]
    assert all(body["model"] == "judge" and "response_format" in body for body in first)


def test_fields_the_user_adds_are_in_every_row_and_make_it_another_judge(prompts, tmp_path):
    run, out, answers = tmp_path / "run", tmp_path / "ask.jsonl", tmp_path / "answers.jsonl"
    plain = tmp_path / "plain.jsonl"
    assert label(prompts, tmp_path / "other", "--judge.batch-out", plain) == 4
    extra = ["--judge.extra-body", "top_k=7"]
    assert label(prompts, run, *extra, "--judge.batch-out", out) == 4
    rows, others = rows_of(out), rows_of(plain)
    assert all(row["body"]["top_k"] == 7 for row in rows)
    assert not {row["custom_id"] for row in rows} & {row["custom_id"] for row in others}
    answer_file(out, answers)
    with JudgeServer() as server:  # the same judge, whichever way it is asked
        live = [*extra, "--judge.base-url", server.url, "--judge.batch-in", answers]
        assert label(prompts, run, *live) == 0
        asked = [body for body in server.bodies if not is_check(body)]
        heads = {body["messages"][0]["content"][:40] for body in asked}
    assert heads.isdisjoint(row["body"]["messages"][0]["content"][:40] for row in rows)
    assert all(row.status == "labelled" for row in read_labels(run))


def test_fields_for_requests_need_somebody_to_send_them_to(prompts, tmp_path, capsys):
    assert label(prompts, tmp_path / "run", "--judge.extra-body", "top_k=7") == 2
    assert "--judge.extra-body" in capsys.readouterr().err


def test_wrong_doubled_missing_and_failed_rows_are_named_and_typed(prompts, tmp_path, capsys):
    run, out, answers = tmp_path / "run", tmp_path / "ask.jsonl", tmp_path / "answers.jsonl"
    label(prompts, run, "--judge.batch-out", out)
    templates = {
        json.loads(line)["custom_id"]: json.loads(line)["body"]["messages"][0]["content"][:40]
        for line in out.read_text().splitlines()
    }

    def spoil(rows):
        doubled = json.loads(json.dumps(rows[1]))
        doubled["response"]["body"]["choices"][0]["message"]["content"] = '{"rating": 1}'
        same = json.loads(json.dumps(rows[0]))
        failed = {**rows[2], "response": {"status_code": 500, "body": {"error": "trouble"}}}
        no_body = {**rows[3], "response": {"status_code": 200, "body": {"object": "nothing"}}}
        expired = {**rows[4], "response": None, "error": {"code": "batch_expired", "message": "too late"}}
        stranger = {**rows[0], "custom_id": "0" * 64}
        nameless = {"response": rows[0]["response"]}
        # rows[5] is missing
        return [rows[0], same, rows[1], doubled, failed, no_body, expired, stranger, nameless, *rows[6:]]

    answer_file(out, answers, spoil)
    with answers.open("a") as file:
        file.write('{"custom_id": "torn')
    capsys.readouterr()
    more = tmp_path / "ask-2.jsonl"  # one call of the first is still out
    assert label(prompts, run, "--judge.batch-in", answers, "--judge.batch-out", out) == 4
    told = capsys.readouterr().err
    for words in (
        "answer the same call differently",
        "line 5: the row failed (status 500)",
        "line 6: the reply has no choices",
        "batch_expired",
        "was not asked by this run",
        "line 9: has no custom_id",
        "is not JSON",
        "4 failed",
    ):
        assert words in told, words
    asked_again = {row["custom_id"] for row in rows_of(more)}
    assert not asked_again & set(templates)  # a failed row is a failure, not a new question
    answer_file(out, answers, lambda rows: rows[5:6])  # the row that was missing
    answer_file(more, tmp_path / "answers-2.jsonl")
    both = ["--judge.batch-in", answers, tmp_path / "answers-2.jsonl"]
    assert label(prompts, run, *both, "--judge.batch-out", tmp_path / "none.jsonl") in (3, 4)
    reasons = {failure.reason for row in read_labels(run) for failure in row.failures}
    assert reasons <= {"batch_error", "pending"}
    # With --retry-failed they are asked again, and then all is labelled.
    again = tmp_path / "again.jsonl"
    assert label(prompts, run, "--retry-failed", "--judge.batch-out", again) == 4
    assert len(rows_of(again)) == 4
    assert [row["body"] for row in rows_of(again)] != []
    for _ in range(4):
        came = []
        for number, file in enumerate(
            sorted(tmp_path.glob("again*.jsonl")) + sorted(tmp_path.glob("none*.jsonl"))
        ):
            answer_file(file, tmp_path / f"came-{number}.jsonl")
            came.append(tmp_path / f"came-{number}.jsonl")
        code = label(prompts, run, "--judge.batch-in", *came, "--judge.batch-out", again)
        if code == 0:
            break
    assert code == 0
    assert all(row.status == "labelled" for row in read_labels(run))


def test_a_file_that_is_not_there_and_a_batch_without_a_model_are_named(prompts, tmp_path, capsys):
    assert label(prompts, tmp_path / "run", "--judge.batch-in", tmp_path / "none.jsonl") == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert main(["label", str(prompts), "--output", str(tmp_path / "x"), "--judge.batch-out", "f"]) == 2
    assert "--judge.model" in capsys.readouterr().err
