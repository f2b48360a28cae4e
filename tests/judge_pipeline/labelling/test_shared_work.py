"""Many machines on one job: a run directory has one process, a shard is its own run, and merging checks what it joins."""

from __future__ import annotations

import json
import shutil

import pytest
from judge_servers import JudgeServer, write_prompts

from judge_pipeline.calls.store import CallStore
from judge_pipeline.cli import main
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.common.run_lock import locked

PARTS = 3


@pytest.fixture
def prompts(tmp_path):
    """Two questions on each of four documents."""
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=4, answers=2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows += [{**row, "id": row["id"] + "b", "query": "And else?"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label(server, prompts, run, *more):
    judge = [
        "--judge.base-url",
        server.url,
        "--judge.model",
        "judge",
        "--dimensions",
        "helpfulness",
        "completeness",
    ]
    return main(["label", str(prompts), "--output", str(run), *judge, "--retrieval", "bm25", *more])


@pytest.fixture
def parts(server, prompts, tmp_path):
    runs = [tmp_path / f"part-{number}" for number in range(1, PARTS + 1)]
    for number, run in enumerate(runs, start=1):
        assert label(server, prompts, run, "--shard", f"{number}/{PARTS}") == 0
    return runs


def merge(*arguments):
    return main(["merge", *map(str, arguments)])


def names(run):
    return [(row.prompt_id, row.response_id) for row in read_labels(run)]


def test_a_run_directory_has_one_process_at_a_time(server, prompts, tmp_path, capsys):
    run = tmp_path / "run"
    with locked(run):
        assert label(server, prompts, run) == 2
        told = capsys.readouterr().err
        assert "is in use: process " in told
        assert "--shard" in told
        assert server.requests == 0
        assert label(server, prompts, run, "--existing", "replace") == 2
    assert label(server, prompts, run) == 0
    assert label(server, prompts, run, "--existing", "replace", "--votes", "2") == 0
    assert (run / ".lock").is_file()


def test_shards_are_about_equal_and_keep_a_documents_prompts_together(parts, prompts):
    found = [names(run) for run in parts]
    every = [name for run in found for name in run]
    assert len(every) == len(set(every)) == 16
    prompt_ids = [{prompt for prompt, _ in run} for run in found]
    assert sorted(map(len, prompt_ids)) == [2, 2, 4]
    for ids in prompt_ids:
        assert {name.removesuffix("b") for name in ids} == {name for name in ids if not name.endswith("b")}


def test_merged_shards_are_the_run_of_one_machine(server, prompts, parts, tmp_path, capsys):
    whole, one = tmp_path / "whole", tmp_path / "one"
    before = server.requests
    assert merge(*parts, "--output", whole, "--existing", "refuse") == 0
    assert server.requests == before
    with JudgeServer() as other:
        assert label(other, prompts, one) == 0
    assert list(read_labels(whole)) == list(read_labels(one))
    stores = [CallStore(run / "calls.sqlite").totals() for run in (whole, *parts)]
    assert stores[0].calls == sum(store.calls for store in stores[1:])
    assert stores[0].usage.input_tokens == sum(store.usage.input_tokens for store in stores[1:])
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["responses"], summary["labelled"]) == (16, 16)
    assert summary["merged"]["calls_bought_twice"] == 0
    assert (whole / "report.html").is_file()
    # Labelling goes on in it, and has nothing to ask.
    assert label(server, prompts, whole) == 0
    (whole / "labels.jsonl").unlink()
    assert label(server, prompts, whole) == 0
    assert server.requests == before
    assert merge(*parts, "--output", whole) == 2
    assert "holds files" in capsys.readouterr().err


def test_a_missing_and_a_doubled_part_are_named_and_nothing_is_written(parts, tmp_path, capsys):
    whole = tmp_path / "whole"
    assert merge(parts[0], parts[2], "--output", whole) == 2
    told = capsys.readouterr().err
    assert "answers have no row: answer 'r0' of prompt 'p1'" in told
    copy = tmp_path / "copy"
    shutil.copytree(parts[1], copy)
    assert merge(*parts, copy, "--output", whole) == 2
    told = capsys.readouterr().err
    assert "answers have more than one row" in told
    assert "part-2 and" in told
    assert not whole.exists()
    assert merge(*parts, "--output", parts[0]) == 2
    assert merge(tmp_path / "nowhere", "--output", whole) == 2
    assert "holds no labels" in capsys.readouterr().err


def test_parts_of_different_runs_are_not_joined(server, prompts, parts, tmp_path, capsys):
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert label(server, prompts, other, "--shard", f"3/{PARTS}", "--judge.extra-body", "top_k=7") == 0
    assert merge(*parts[:2], other, "--output", whole) == 2
    assert "judge.extra_body" in capsys.readouterr().err
    with locked(parts[0]):
        assert merge(*parts, "--output", whole) == 2
    assert "is in use" in capsys.readouterr().err
    moved = tmp_path / "moved.jsonl"
    prompts.rename(moved)
    assert merge(*parts, "--output", whole) == 2
    assert "--prompts FILE" in capsys.readouterr().err
    assert merge(*parts, "--output", whole, "--prompts", moved) == 0
    moved.write_text(moved.read_text().replace("item 1", "item one"))
    assert merge(*parts, "--output", tmp_path / "again", "--prompts", moved) == 2
    assert "has other content" in capsys.readouterr().err


def test_a_call_that_two_parts_bought_is_kept_once_and_counted_twice(server, prompts, tmp_path):
    rows = [json.loads(line) for line in prompts.read_text().splitlines()][:2]
    rows[1] |= {
        "context": rows[0]["context"] + " The end.",
        "query": rows[0]["query"],
        "responses": rows[0]["responses"],
    }
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [tmp_path / "a", tmp_path / "b"]
    for number, run in enumerate(runs, start=1):
        assert label(server, prompts, run, "--shard", f"{number}/2") == 0
    assert merge(*runs, "--output", tmp_path / "whole") == 0
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["merged"]["calls_bought_twice"] == 2  # the rating of each answer's helpfulness
    paid = sum(CallStore(run / "calls.sqlite").totals().usage.input_tokens for run in runs)
    assert CallStore(tmp_path / "whole" / "calls.sqlite").totals().usage.input_tokens == paid


@pytest.mark.parametrize("shard", ["0/3", "4/3", "three", "1/0"])
def test_what_is_no_shard_is_refused(server, prompts, tmp_path, shard, capsys):
    assert label(server, prompts, tmp_path / "run", "--shard", shard) == 2
    assert "--shard" in capsys.readouterr().err


def test_a_shard_without_documents_is_refused(server, prompts, tmp_path, capsys):
    assert label(server, prompts, tmp_path / "run", "--shard", "9/9") == 2
    assert "use fewer parts" in capsys.readouterr().err
