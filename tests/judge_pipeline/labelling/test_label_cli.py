"""`judge-pipeline label` as a user meets it: a whole run, bad input, limits, Ctrl-C, resuming, retrying, settings."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from judge_servers import JudgeServer, completion, write_prompts

from judge_pipeline.cli import main
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.documents.indexed import DocumentIndexer


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=3, answers=2)
    return path


def label(server, prompts, run, *more):
    judge = [
        "--judge.base-url",
        server.url,
        "--judge.model",
        "judge",
        "--judge.backoff",
        "0.001",
        "--judge.retries",
        "1",
    ]
    return main(["label", str(prompts), "--output", str(run), *judge, "--retrieval", "bm25", *more])


def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_a_run_writes_all_it_promises_and_a_second_one_asks_nothing(server, prompts, tmp_path, capsys):
    run = tmp_path / "run"
    assert label(server, prompts, run, "--weights", "faithfulness=2") == 0
    assert {path.name for path in run.iterdir()} >= {
        "labels.jsonl",
        "calls.sqlite",
        "report.html",
        "summary.json",
        "run.yaml",
    }
    labels = list(read_labels(run))
    assert [(row.prompt_id, row.response_id) for row in labels] == [
        (f"p{p}", f"r{r}") for p in range(3) for r in range(2)
    ]
    for row in labels:
        assert row.status == "labelled"
        scores = row.scores
        assert list(scores) == ["helpfulness", "logicality", "faithfulness", "completeness"]
        assert row.reward == pytest.approx((sum(scores.values()) + scores["faithfulness"]) / 5)
        assert set(row.evidence) == set(scores)
    found = summary(run)
    assert (found["prompts"], found["responses"], found["labelled"]) == (3, 6, 6)
    assert found["calls"]["made"] == found["store"]["calls"] == len(server.succeeded) - 1  # one was the probe
    # Every token is counted for exactly one answer.
    assert sum(row.usage.calls for row in labels) == pytest.approx(found["calls"]["made"], abs=0.05)
    assert sum(row.usage.input_tokens for row in labels) == pytest.approx(found["tokens"]["input"], abs=5)
    assert found["tokens"] == {
        "input": 100 * found["calls"]["made"],
        "output": 10 * found["calls"]["made"],
        "cached_input": 40 * found["calls"]["made"],
        "reasoning": 0,
    }
    assert found["cost"] is None
    shown = capsys.readouterr()
    assert "6 labelled" in shown.out
    assert "labelling: 6/6 answers" in shown.err
    for figure in ("answers/min", f"calls {found['calls']['made']}", "cached 40%", "in ", "out "):
        assert figure in shown.err

    before, rows = server.requests, (run / "labels.jsonl").read_bytes()
    assert label(server, prompts, run, "--weights", "faithfulness=2") == 0
    assert server.requests == before
    assert (run / "labels.jsonl").read_bytes() == rows
    assert summary(run)["calls"]["made"] == 0
    # Other weights need no calls either.
    assert label(server, prompts, run, "--price-input", "1", "--price-output", "2") == 0
    assert server.requests == before
    for row in read_labels(run):
        assert row.reward == pytest.approx(sum(row.scores.values()) / 4)


def test_calls_go_out_by_template_then_prompt_then_answer(server, prompts, tmp_path):
    assert label(server, prompts, tmp_path / "run", "--judge.max-concurrency", "1") == 0
    heads = [body["messages"][0]["content"][:200] for body in server.bodies[1:]]
    changes = sum(left != right for left, right in itertools.pairwise(heads))
    assert changes <= 2 * len(set(heads))  # unordered, nearly every call would change template


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["is not there"]),
        (
            b'{"id": "a", "context": "c", "query": "q", "responses": [{"id": "r", "text": "caf\xe9"}]}\n',
            ["line 1", "UTF-8"],
        ),
        (
            b'{"id": "a", "context": "c", "query": "q", "responses": [{"id": "r", "text": "t"}]}\n{"id": "b", "cont',
            ["line 2", "torn"],
        ),
        (
            b'{"id": "a", "query": "q", "responses": [{"id": "r", "text": "t"}]}\n',
            ["line 1", "context", "missing"],
        ),
        (
            b'{"id": "a", "context": "c", "query": " ", "responses": [{"id": "r", "text": "t"}]}\n',
            ["line 1", "query", "white space"],
        ),
        (
            b'{"id": "a", "context": "c", "query": "q", "responses": [{"id": "r", "text": " \\n"}]}\n',
            ["line 1", "'r'", "white space"],
        ),
        (
            b'{"id": "a", "context": "c", "query": "q", "responses": [{"id": "r", "text": "t"}]}\n' * 2,
            ["line 2", "line 1"],
        ),
        (b'{"id": "a", "context": "c", "query": "q", "responses": []}\n', ["no responses"]),
    ],
)
def test_bad_input_is_named_before_anything_is_asked(server, tmp_path, capsys, content, words):
    prompts = tmp_path / "prompts.jsonl"
    if content is not None:
        prompts.write_bytes(content)
    assert label(server, prompts, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert server.requests == 0
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_be_are_refused(server, prompts, tmp_path, capsys):
    for flags, words in (
        (["--max-cost", "1"], "needs prices"),
        (["--weights", "wit=2"], "'wit' is not labelled"),
        (["--dimensions", "helpfullness"], "did you mean 'helpfulness'"),
        (["--judge.modell", "x"], "--judge.model"),
        (["--overflow", "cut"], "--overflow"),
        (["--judge.base-url", "localhost:8000/v1"], "begins with http://"),
    ):
        assert label(server, prompts, tmp_path / "run", *flags) == 2
        assert words in capsys.readouterr().err
    assert server.requests == 0


def test_another_configuration_in_the_same_directory_is_the_users_choice(server, prompts, tmp_path, capsys):
    run = tmp_path / "run"
    assert label(server, prompts, run, "--limit", "1") == 0
    assert label(server, prompts, run, "--top-k", "3") == 2
    assert "top_k" in capsys.readouterr().err
    assert len(list(read_labels(run))) == 2
    assert label(server, prompts, run, "--top-k", "3", "--existing", "resume") == 0
    assert len(list(read_labels(run))) == 6
    assert label(server, prompts, run, "--existing", "replace", "--limit", "2") == 0
    assert len(list(read_labels(run))) == 4


def test_a_start_that_failed_is_no_obstacle_to_the_next(server, prompts, tmp_path, capsys):
    run = tmp_path / "run"
    assert label(server, prompts, run, "--judge.model", "jugde") == 2
    assert "does not know the model 'jugde'" in capsys.readouterr().err
    assert label(server, prompts, run, "--overflow", "error", "--max-calls", "0") == 3
    assert label(server, prompts, run, "--votes", "2") == 2, "rows are there now"
    assert label(server, prompts, run) == 0


def test_limits_stop_cleanly_and_the_next_run_goes_on(server, prompts, tmp_path):
    run = tmp_path / "run"
    assert label(server, prompts, run, "--max-calls", "7") == 3
    assert sum(server.succeeded.values()) == 7 + 1
    labels = list(read_labels(run))
    assert len(labels) == 6
    assert {failure.reason for row in labels for failure in row.failures} == {"stopped"}
    assert "--max-calls 7" in summary(run)["stopped"]
    priced = ["--price-input", "1000", "--price-output", "0", "--judge.max-concurrency", "1"]
    assert label(server, prompts, run, "--max-cost", "0.55", *priced) == 3  # a call costs 0.1
    assert summary(run)["calls"]["made"] == 6
    assert summary(run)["cost"]["total"] == pytest.approx(0.6)
    assert label(server, prompts, run) == 0
    assert max(server.succeeded.values()) == 1
    assert summary(run)["calls"]["made"] == len(server.succeeded) - 14


def test_one_failed_dimension_keeps_the_others_and_retry_failed_redoes_only_it(prompts, tmp_path):
    sick = True

    def refuse_logic(handler, body, attempt):
        if sick and "logic" in body["messages"][0]["content"].lower()[:400]:
            handler.send_json(completion("", refusal="no"))
            return True
        return False

    run = tmp_path / "run"
    with JudgeServer(refuse_logic) as server:
        assert label(server, prompts, run) == 3
        labels = list(read_labels(run))
        assert {row.status for row in labels} == {"partial"}
        for row in labels:
            assert [(f.dimension, f.reason) for f in row.failures] == [("logicality", "refused")]
            assert row.reward is None
            assert sum(score is not None for score in row.scores.values()) == 3
        assert summary(run)["failures"] == {"logicality": {"refused": 6}}
        before = server.requests
        assert label(server, prompts, run, "--missing", "mean_of_rest") == 3  # kept, with another reward
        assert server.requests == before
        assert all(row.reward is not None for row in read_labels(run))
        sick = False
        assert label(server, prompts, run, "--retry-failed") == 0
        assert summary(run)["calls"]["made"] == 6
        assert max(server.succeeded.values()) == 1


def test_retry_failed_asks_anew_what_made_no_sense(prompts, tmp_path):
    sick = True

    def babble(handler, body, attempt):
        if sick and "logic" in body["messages"][0]["content"].lower()[:400]:
            handler.send_json(completion("I would rather not put a number on it."))
            return True
        return False

    run = tmp_path / "run"
    with JudgeServer(babble) as server:
        assert label(server, prompts, run) == 3
        assert summary(run)["failures"] == {"logicality": {"unparsable": 6}}
        sick = False
        assert label(server, prompts, run, "--retry-failed") == 0
        assert summary(run)["calls"]["made"] <= 12
        assert all(row.status == "labelled" for row in read_labels(run))


def test_calls_over_the_judges_window_are_an_error_or_a_counted_skip(server, prompts, tmp_path, capsys):
    server.model_info = {"max_model_len": 2500}
    run = tmp_path / "run"
    assert label(server, prompts, run) == 2
    told = capsys.readouterr().err
    assert "3 of 3 prompts" in told
    assert "2500" in told
    assert sum(server.succeeded.values()) <= 1
    server.model_info = {"max_model_len": 100_000}
    assert label(server, prompts, run) == 0


def test_what_weighs_the_key_points_takes_part_in_the_check_of_the_window(server, tmp_path, capsys):
    """Every chunk fits, and the list of what all of them say does not."""
    path, run = tmp_path / "long.jsonl", tmp_path / "run"
    context = " ".join(f"In the year {1000 + n} the harbour saw {n} ships from port {n}." for n in range(300))
    responses = [{"id": "a", "text": "In 1000."}]
    path.write_text(
        json.dumps({"id": "p", "context": context, "query": "Which years?", "responses": responses})
    )
    server.model_info = {"max_model_len": 2500}
    more = ("--dimensions", "completeness", "--chunk-tokens", "64", "--few-shot", "0", "--max-tokens", "64")
    assert label(server, path, run, *more) == 2
    told = capsys.readouterr().err
    assert "p, completeness.cover" in told
    assert "--key-points-per-call" in told
    assert not any("Key points of the document" in str(body["messages"]) for body in server.bodies)
    assert label(server, path, tmp_path / "groups", *more, "--key-points-per-call", "20") == 0


def test_dry_run_asks_nobody_and_makes_nothing(server, prompts, tmp_path, capsys):
    assert (
        label(server, prompts, tmp_path / "run", "--dry-run", "--price-input", "2", "--price-output", "8")
        == 0
    )
    told = capsys.readouterr().out
    assert server.requests == 0
    assert not (tmp_path / "run").exists()
    for template in ("helpfulness.rate", "logicality.rate", "faithfulness.verify", "completeness.cover"):
        assert f"──── {template}" in told
    assert "cost expected" in told
    assert "█" in told
    calls = next(line for line in told.splitlines() if line.startswith("helpfulness.rate "))
    assert calls.split()[1] == "6"
    assert "documents: 3, tokens" in told


def test_a_dry_run_expects_the_calls_that_are_made(server, prompts, tmp_path, capsys):
    """Two questions on each document, several statements a call; what hangs on no finding is exact."""
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    rows += [{**row, "id": row["id"] + "b", "query": "And else?"} for row in rows]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert label(server, prompts, tmp_path / "run", "--dry-run", "--statements-per-call", "6") == 0
    told = capsys.readouterr().out
    assert "documents: 3, tokens" in told
    assert "12 answers to 6 prompts" in told
    assert "──── faithfulness.verify_many" in told
    expected = {line.split()[0]: int(line.split()[1]) for line in told.splitlines() if ".rate  " in line}
    assert label(server, prompts, tmp_path / "run", "--statements-per-call", "6") == 0
    assert expected == {"helpfulness.rate": 12, "logicality.rate": 12}
    made = Counter(body["messages"][0]["content"][:200] for body in server.bodies)
    assert list(made.values()).count(12) >= 2


def test_stand_ins_for_key_points_differ_from_chunk_to_chunk(server, tmp_path, capsys):
    """As many and as long as real ones: the call that weighs them is not taken for a short one."""
    path = tmp_path / "long.jsonl"
    write_prompts(path, prompts=1, answers=1, sentences=400)
    assert label(server, path, tmp_path / "run", "--dry-run", "--chunk-tokens", "512") == 0
    told = capsys.readouterr().out
    chunks = next(
        int(line.split()[1]) for line in told.splitlines() if line.startswith("completeness.extract ")
    )
    cover = told.split("──── completeness.cover")[1].split("──── ")[0].rsplit("[user]", 1)[1]
    listed = re.findall(r"^K\d+[:.] (.*)$", cover, re.MULTILINE)
    assert chunks > 4
    assert len(listed) == len(set(listed)) == 5 * chunks
    assert all("has colour" in point for point in listed)


def test_documents_are_kept_by_the_megabytes_asked_for(server, tmp_path, monkeypatch):
    """Prompts over two documents in turn: with room for one alone, each is cut again every time it comes back."""
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=2, answers=1, sentences=200)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{**row, "id": f"{row['id']}-{turn}"} for turn in range(3) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cuts = []
    cut = DocumentIndexer.cut
    monkeypatch.setattr(DocumentIndexer, "cut", lambda self, text: cuts.append(text) or cut(self, text))
    assert label(server, path, tmp_path / "much", "--window", "1") == 0
    assert len(cuts) == 2
    assert label(server, path, tmp_path / "little", "--window", "1", "--document-megabytes", "0.03") == 0
    assert len(cuts) == 2 + 6


def test_ctrl_c_keeps_what_was_in_flight(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, prompts=12, answers=3)
    run = tmp_path / "run"
    with JudgeServer(latency=0.2) as server:
        command = [
            *(sys.executable, "-m", "judge_pipeline.cli", "label", str(prompts), "--output", str(run)),
            *("--judge.base-url", server.url, "--judge.model", "judge", "--retrieval", "bm25"),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while server.requests < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
        assert process.returncode == 130, told
        assert "Traceback" not in told
        assert "in flight" in told
        answered = sum(server.succeeded.values())
        server.latency = 0.0
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert max(server.succeeded.values()) == 1  # nothing that was answered before was asked again
        assert summary(run)["calls"]["from_store"] >= answered - 1


def test_a_fifth_dimension_flows_through(server, prompts, tmp_path):
    run = tmp_path / "run"
    assert (
        label(server, prompts, run, "--dimensions", "helpfulness", "plan_completeness", "--limit", "1") == 0
    )
    assert all(set(row.scores) == {"helpfulness", "plan_completeness"} for row in read_labels(run))


def test_the_key_comes_from_the_named_variable(server, prompts, tmp_path, monkeypatch, capsys):
    server.key = "secret"
    monkeypatch.setenv("MY_KEY", "secret")
    assert label(server, prompts, tmp_path / "bad", "--limit", "1") == 2
    assert "refuses the key" in capsys.readouterr().err
    assert label(server, prompts, tmp_path / "good", "--limit", "1", "--judge.api-key-env", "MY_KEY") == 0
    assert "secret" not in (tmp_path / "good" / "run.yaml").read_text()


def test_json_and_text_protocols_end_in_rows(server, prompts, tmp_path):
    assert label(server, prompts, tmp_path / "text", "--judge.structured", "off", "--limit", "1") in (0, 3)
    assert not any("response_format" in body for body in server.bodies)
    assert len(list(read_labels(tmp_path / "text"))) == 2
