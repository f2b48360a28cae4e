"""A batch file is out until its answers come or it is given up: no call is lost, forgotten or mailed twice."""

from __future__ import annotations

import json

import pytest
from batch_helpers import answer_file, label, rows_of
from judge_servers import JudgeServer, completion, sane_text, write_prompts

from judge_pipeline.calls.batch_book import BatchBook, Mailed
from judge_pipeline.calls.call import Call, Message
from judge_pipeline.calls.store import CallStore
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.engines.batch_file import BatchFiles, FileLimits


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=3, answers=2)
    return path


def out_in(run):
    return BatchBook(CallStore(run / "calls.sqlite")).out()


def ids(path):
    return [row["custom_id"] for row in rows_of(path)]


def test_a_call_that_two_dimensions_want_stands_once_in_a_file(prompts, tmp_path):
    out = tmp_path / "ask.jsonl"
    flags = ["--joint-ratings", "--window", "1", "--judge.batch-out", out]
    assert label(prompts, tmp_path / "run", *flags) == 4
    bodies = [json.dumps(row["body"], sort_keys=True) for row in rows_of(out)]
    assert len(bodies) == len(set(bodies))
    assert len(ids(out)) == len(set(ids(out)))


def test_files_bounded_by_max_calls_do_not_overlap_and_come_back_one_by_one(prompts, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "ask.jsonl"
    assert label(prompts, run, "--judge.batch-out", out, "--max-calls", "7") == 4
    assert label(prompts, run, "--judge.batch-out", out) == 4
    second = tmp_path / "ask-2.jsonl"
    assert len(ids(out)) == 7
    assert not set(ids(out)) & set(ids(second))
    assert out_in(run) == {str(out): 7, str(second): len(ids(second))}
    capsys.readouterr()
    # The second file is back first; of the first one only a part.
    answer_file(second, tmp_path / "back-2.jsonl")
    assert label(prompts, run, "--judge.batch-in", tmp_path / "back-2.jsonl") == 4
    assert "calls are out: 7 in" in capsys.readouterr().err
    assert out_in(run) == {str(out): 7}
    answer_file(out, tmp_path / "back-1.jsonl", lambda rows: rows[:3])
    assert label(prompts, run, "--judge.batch-in", tmp_path / "back-1.jsonl") == 4
    assert out_in(run) == {str(out): 4}
    answer_file(out, tmp_path / "back-1.jsonl")
    assert (
        label(prompts, run, "--judge.batch-in", tmp_path / "back-1.jsonl") == 4
    )  # what follows is not written yet
    told = capsys.readouterr().err
    assert "4 taken in, 0 failed, 3 were in already" in told
    assert out_in(run) == {}
    reasons = {failure.reason for row in read_labels(run) for failure in row.failures}
    assert reasons == {"pending"}


def test_an_endpoint_is_not_asked_for_what_is_out(prompts, tmp_path):
    run, out = tmp_path / "run", tmp_path / "ask.jsonl"
    assert label(prompts, run, "--judge.batch-out", out) == 4
    with JudgeServer() as server:
        assert label(prompts, run, "--judge.base-url", server.url) == 4
        assert sum(server.succeeded.values()) <= 1  # the probe
        assert label(prompts, run, "--judge.base-url", server.url, "--judge.batch-give-up", out) == 0
        assert label(prompts, run, "--judge.base-url", server.url, "--judge.batch-give-up", out) == 0


def test_answers_of_a_file_that_was_given_up_are_still_taken(prompts, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "ask.jsonl"
    assert label(prompts, run, "--judge.batch-out", out) == 4
    first = rows_of(out)
    answer_file(out, tmp_path / "late.jsonl")
    assert label(prompts, run, "--judge.batch-give-up", "no.jsonl", "--judge.batch-out", out) == 2
    assert "ask.jsonl" in capsys.readouterr().err
    assert label(prompts, run, "--judge.batch-give-up", "ask.jsonl", "--judge.batch-out", out) == 4
    again = rows_of(out)  # nothing is out in it any more: its name is free
    assert [row["body"] for row in again] == [row["body"] for row in first]
    assert not {row["custom_id"] for row in again} & {row["custom_id"] for row in first}
    assert all(len(row["custom_id"]) <= 64 for row in again)
    assert label(prompts, run, "--judge.batch-in", tmp_path / "late.jsonl", "--judge.batch-out", out) == 4
    assert f"{len(first)} taken in, 0 failed" in capsys.readouterr().err
    assert not {json.dumps(row["body"]) for row in rows_of(out)} & {json.dumps(row["body"]) for row in first}
    assert out_in(run) == {str(out): len(rows_of(out))}


def test_files_are_split_at_the_services_limits(prompts, tmp_path):
    run, out = tmp_path / "run", tmp_path / "ask.jsonl"
    assert label(prompts, run, "--judge.batch-out", out, "--judge.batch-rows", "4") == 4
    files = sorted(tmp_path.glob("ask*.jsonl"), key=lambda path: (len(path.name), path.name))
    assert {path.name for path in files} > {"ask.jsonl", "ask-2.jsonl", "ask-3.jsonl"}
    assert [len(rows_of(path)) for path in files][:-1] == [4] * (len(files) - 1)
    found = [name for path in files for name in ids(path)]
    assert len(found) == len(set(found)) == sum(out_in(run).values())
    assert (
        label(
            prompts,
            tmp_path / "small",
            "--judge.batch-out",
            tmp_path / "small.jsonl",
            "--judge.batch-megabytes",
            "0.03",
        )
        == 4
    )
    sizes = [path.stat().st_size for path in tmp_path.glob("small*.jsonl")]
    assert len(sizes) > 2
    assert max(sizes) <= 30_000


def test_a_file_that_is_not_ours_is_not_written_over(prompts, tmp_path):
    out = tmp_path / "ask.jsonl"
    out.write_text("mine")
    assert label(prompts, tmp_path / "run", "--judge.batch-out", out) == 4
    assert out.read_text() == "mine"
    assert rows_of(tmp_path / "ask-2.jsonl")


def test_a_run_killed_while_it_writes_leaves_nothing_out_that_no_file_asks(tmp_path):
    store = CallStore(tmp_path / "calls.sqlite")
    book, out = BatchBook(store), tmp_path / "ask.jsonl"

    def row(number):
        asked = Call(template="t", messages=(Message(role="user", content=str(number)),))
        return Mailed(asked.key("judge"), asked, "judge", "p"), b"%d\n" % number

    files = BatchFiles(out, book, FileLimits(rows=3))
    files.write(map(row, range(5)))  # and is killed: the first file is whole, the second is not
    files = BatchFiles(out, book, FileLimits(rows=3))
    files.recover()
    assert book.out() == {str(out): 3}
    assert book.waits_in(row(4)[0].custom_id) is None
    files.write(map(row, range(3, 5)))
    assert list(files.written) == [tmp_path / "ask-2.jsonl"]
    book.send(tmp_path / "ask-2.jsonl")  # and is killed: noted, on disk, not in its place
    files._file.flush()
    BatchFiles(out, book, FileLimits(rows=3)).recover()
    assert (tmp_path / "ask-2.jsonl").read_text() == "3\n4\n"
    assert book.out() == {str(out): 3, str(tmp_path / "ask-2.jsonl"): 2}


def test_a_truncated_answer_is_mailed_again_with_more_room(prompts, tmp_path):
    run, out, back = tmp_path / "run", tmp_path / "ask.jsonl", tmp_path / "back.jsonl"
    assert label(prompts, run, "--judge.batch-out", out, "--max-tokens", "100") == 4
    asked = rows_of(out)

    def cut(rows):
        rows[0]["response"]["body"] = completion(sane_text(asked[0]["body"])[:20], finish="length")
        return rows

    answer_file(out, back, cut)
    assert label(prompts, run, "--judge.batch-in", back, "--judge.batch-out", out, "--max-tokens", "100") == 4
    again = [row["body"] for row in rows_of(out) if row["body"]["messages"] == asked[0]["body"]["messages"]]
    assert [body["max_tokens"] for body in again] == [200]


@pytest.mark.parametrize("live", [False, True])
def test_fields_a_judge_refuses_are_renamed_or_left_out(prompts, tmp_path, live, capsys):
    def picky(handler, body, attempt):
        for field, words in (
            ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
            ("temperature", "Unsupported value: 'temperature' does not support 0 with this model."),
        ):
            if field in body:
                handler.send_json({"error": {"message": words, "param": field, "code": "unsupported"}}, 400)
                return True
        if body.get("response_format", {}).get("json_schema", {}).get("strict"):
            words = "Invalid schema for response_format: strict is not supported"
            handler.send_json({"error": {"message": words, "param": "response_format"}}, 400)
            return True
        return False

    run, out = tmp_path / "run", tmp_path / "ask.jsonl"
    with JudgeServer(picky) as server:
        told = ["--judge.rename", "max_tokens=max_completion_tokens", "--judge.drop", "temperature", "strict"]
        flags = ["--judge.base-url", server.url] if live else told
        assert label(prompts, run, "--judge.batch-out", out, *flags) == 4
        assert sum(server.succeeded.values()) == live  # one call that is answered tells all
    for row in rows_of(out):
        body = row["body"]
        assert "temperature" not in body
        assert "max_tokens" not in body
        assert body["max_completion_tokens"] == 2048
        assert "strict" not in body["response_format"]["json_schema"]
    # A later round asks nobody again for what is known.
    answer_file(out, tmp_path / "back.jsonl")
    later = [] if live else told
    assert (
        label(prompts, run, "--judge.batch-in", tmp_path / "back.jsonl", "--judge.batch-out", out, *later)
        == 4
    )
    assert all("max_tokens" not in row["body"] for row in rows_of(out))


def test_the_settings_serve_an_endpoint_too(prompts, tmp_path):
    told = ["--judge.rename", "max_tokens=max_completion_tokens", "--judge.drop", "temperature", "strict"]
    with JudgeServer() as server:
        assert label(prompts, tmp_path / "run", "--judge.base-url", server.url, "--limit", "1", *told) == 0
        for body in server.bodies:
            assert "temperature" not in body
            assert "max_tokens" not in body
            assert "max_completion_tokens" in body
            assert "strict" not in body.get("response_format", {}).get("json_schema", {})


def test_an_unknown_field_is_named(prompts, tmp_path, capsys):
    assert label(prompts, tmp_path / "run", "--judge.drop", "temprature") == 2
    assert "--judge.drop" in capsys.readouterr().err
