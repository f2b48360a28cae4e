"""`judge-pipeline evaluate` asks judges as `label` does: batch files, limits, dry runs, several of them."""

from __future__ import annotations

import json
import re

import pytest
from batch_helpers import answer_file, rows_of
from judge_servers import JudgeServer

from judge_pipeline.cli import main
from judge_pipeline.common.record_files import write_records


@pytest.fixture
def people(tmp_path):
    rows = [
        {
            "id": f"q{number}",
            "document_id": f"d{number}",
            "context": f"The keeper of lighthouse {number} painted it red. " * (5 + 3 * number),
            "query": "Who painted it?",
            "responses": [
                {"id": str(place), "text": f"Keeper {number} " * place, "human": {"overall": float(place)}}
                for place in (1, 2, 3)
            ],
            "preferences": [{"winner": "3", "loser": "1"}],
        }
        for number in range(8)
    ]
    write_records(tmp_path / "people.jsonl", rows)
    return tmp_path / "people.jsonl"


@pytest.fixture
def server():
    with JudgeServer() as running:
        running.models = ["judge", "other"]
        yield running


def evaluate(people, output, *words):
    fixed = ["--embedding-model", "none", "--bootstrap", "20", "--output", str(output)]
    return main(["evaluate", str(people), *fixed, *map(str, words)])


def live(server, *words):
    return ["--judge.base-url", server.url, "--judge.model", "judge", *words]


def found_in(output):
    return json.loads((output / "agreement.json").read_text())


def asked_of(server):
    """Calls without the question whether the judge can hold to a schema."""
    return sum("lighthouse" in json.dumps(body) for body in server.bodies)


def test_batch_files_serve_it_as_they_serve_labels(people, tmp_path, capsys):
    output, calls = tmp_path / "out", tmp_path / "calls.jsonl"
    words = ["--pairwise-judge", "--holistic", "--judge.model", "judge"]
    assert evaluate(people, output, *words, "--judge.batch-out", calls) == 4
    told = capsys.readouterr().err
    assert "40 calls written to" in told
    assert "--judge.batch-in" in told
    assert not (output / "agreement.json").exists()
    assert len({row["custom_id"] for row in rows_of(calls)}) == 8 * 2 + 8 * 3
    answered = tmp_path / "answered.jsonl"
    answer_file(calls, answered, spoil=lambda rows: rows[:30])
    assert evaluate(people, output, *words, "--judge.batch-in", answered) == 4  # ten are out still
    rest = tmp_path / "rest.jsonl"
    answer_file(calls, rest, spoil=lambda rows: rows[30:])
    assert evaluate(people, output, *words, "--judge.batch-in", rest) == 0
    summary = found_in(output)["judge_baselines"]
    assert summary["pairwise"]["judged"] == 8
    assert summary["holistic"]["failed"] == 0


def test_limits_end_it_and_the_same_command_goes_on(people, tmp_path, server, capsys):
    output = tmp_path / "out"
    words = live(server, "--pairwise-judge", "--holistic")
    assert evaluate(people, output, *words, "--max-calls", "7") == 3
    assert asked_of(server) == 7
    assert any(
        "33 calls were not made: --max-calls 7 is reached" in note for note in found_in(output)["notes"]
    )
    prices = ["--price-input", "1000", "--price-output", "1000"]  # 0.11 a call
    assert evaluate(people, output, *words, *prices, "--max-cost", "0.5", "--judge.max-concurrency", "1") == 3
    assert 7 + 4 <= asked_of(server) <= 7 + 6
    assert evaluate(people, output, *words, *prices) == 0
    assert asked_of(server) == 40
    assert max(server.succeeded.values()) == 1
    assert found_in(output)["judge_baselines"]["cost"] > 2
    assert "cost of this run: " in capsys.readouterr().out
    assert evaluate(people, output, *words, "--max-cost", "1") == 2
    assert "needs prices" in capsys.readouterr().err


def test_a_dry_run_asks_nothing_and_a_calibrated_one_nothing_twice(people, tmp_path, server, capsys):
    output = tmp_path / "out"
    words = live(server, "--pairwise-judge", "--holistic", "--price-input", "1", "--price-output", "1")
    assert evaluate(people, output, *words, "--dry-run") == 0
    told = capsys.readouterr().out
    assert not server.requests
    assert not output.exists()
    assert "──── baseline.pairwise" in told
    rows = {line.split()[0]: line.split()[1] for line in told.splitlines() if line.startswith("baseline.")}
    assert rows == {"baseline.holistic": "24", "baseline.pairwise": "16"}
    assert "cost expected" in told
    assert evaluate(people, output, *words, "--dry-run", "--calibrate", "5") == 0
    told = capsys.readouterr().out
    assert asked_of(server) == 25
    assert "measured on 5 prompts with 15 answers: 25 calls, 2,500 tokens in and 250 out" in told
    expected = next(line.split() for line in told.splitlines() if line.startswith("all "))
    assert evaluate(people, output, *words) == 0
    assert asked_of(server) == 40
    spent = found_in(output)["judge_baselines"]
    tokens_in = sum(spent[kind]["input_tokens"] for kind in ("pairwise", "holistic"))
    assert int(expected[2].replace(",", "")) == pytest.approx(tokens_in, rel=0.1)
    assert re.search(r"cost expected: [\d.]+ ± ", told)


def test_several_judges_are_asked_the_same_and_compared(people, tmp_path, server, capsys):
    output = tmp_path / "out"
    words = live(server, "--pairwise-judge", "--holistic", "--also-ask", "other")
    assert evaluate(people, output, *words, "--dry-run") == 0
    assert capsys.readouterr().out.count("\njudge: ") == 2
    assert evaluate(people, output, *words) == 0
    assert asked_of(server) == 80
    found = found_in(output)
    overall = next(result for result in found["results"] if result["target"] == "overall")
    names = [row["name"] for row in overall["rows"]]
    assert "holistic judge (judge)" in names
    assert "holistic judge (other)" in names
    paired = [row["name"] for row in overall["paired"]]
    assert "holistic judge (judge) minus holistic judge (other)" in paired
    assert set(found["judge_baselines"]) == {
        f"{kind} ({judge})" for kind in ("pairwise", "holistic") for judge in ("judge", "other")
    }
    assert "pairwise judge (other): 8 of 8 pairs judged" in capsys.readouterr().out


def test_what_cannot_be_asked_is_said(people, tmp_path, server, capsys):
    for words, told in (
        (["--dry-run"], "--pairwise-judge"),
        (["--judge.batch-out", tmp_path / "c.jsonl", "--judge.model", "judge"], "--holistic"),
        (["--holistic", "--judge.batch-out", tmp_path / "c.jsonl"], "--judge.model"),
        (
            [
                "--holistic",
                "--also-ask",
                "b",
                "--judge.model",
                "a",
                "--judge.batch-out",
                tmp_path / "c.jsonl",
            ],
            "one model",
        ),
        (["--holistic", "--also-ask", "b"], "--judge.model"),
        (["--holistic", "--calibrate", "3"], "--dry-run"),
    ):
        assert evaluate(people, tmp_path / "out", *words) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
