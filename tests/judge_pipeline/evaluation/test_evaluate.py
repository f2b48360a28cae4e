"""`judge-pipeline evaluate` from files to tables, with small records of our own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.cli import EVALUATE
from judge_pipeline.common.config import main
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import write_records
from judge_pipeline.common.records import DIMENSIONS, Prompt
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing
from judge_pipeline.evaluation.inputs import read_scored
from judge_pipeline.evaluation.run import evaluate_human, reweigh
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.raters import (
    rater_values,
    repeated_preferences,
    self_agreement,
    vote_values,
)
from judge_pipeline.statistics.table import build_table

RNG = np.random.default_rng(5)


def human_rows(count: int = 30, **extra: object) -> list[dict]:
    rows = []
    for number in range(count):
        quality = RNG.permutation(4)
        rows.append(
            {
                "id": f"q{number}",
                "document_id": f"d{number // 2}",
                "context": f"The keeper of lighthouse {number} painted it red and white. " * (1 + number),
                "query": "Who painted it?",
                "responses": [
                    {
                        "id": f"q{number}-{i}",
                        "text": f"The keeper painted lighthouse {number} " + "again " * int(i),
                        "human": {"faithfulness": float(value * 3), "overall": float(value * 3)},
                    }
                    for i, value in enumerate(quality)
                ],
                "preferences": [
                    {"winner": f"q{number}-{quality.argmax()}", "loser": f"q{number}-{quality.argmin()}"}
                ],
                **extra,
            }
        )
    return rows


def label_rows(prompts: list[dict], noise: float = 1.0) -> list[dict]:
    rows = []
    for prompt in prompts:
        for response in prompt["responses"]:
            truth = response["human"]["overall"]
            scores = {name: float(np.clip(truth + RNG.normal(0, noise), 0, 10)) for name in DIMENSIONS}
            scores["logicality"] = float(RNG.integers(0, 11))
            rows.append(
                {
                    "prompt_id": prompt["id"],
                    "response_id": response["id"],
                    "scores": scores,
                    "reward": float(np.mean(list(scores.values()))),
                    "status": "labelled",
                    "evidence": {"faithfulness": {"votes": [scores["faithfulness"], truth]}},
                }
            )
    return rows


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    prompts = human_rows()
    write_records(tmp_path / "people.jsonl", prompts)
    write_records(tmp_path / "labels.jsonl", label_rows(prompts))
    return tmp_path / "people.jsonl", tmp_path / "labels.jsonl"


def run(*words: object) -> int:
    return main("judge-pipeline", [EVALUATE], ["evaluate", *map(str, words), "--embedding-model", "none"])


def test_labels_against_people_through_the_command(files, tmp_path, capsys):
    people, labels = files
    output = tmp_path / "out"
    assert run(labels, "--prompts", people, "--output", output, "--bootstrap", "50") == 0
    found = json.loads((output / "agreement.json").read_text())
    by_target = {
        result["target"]: {row["name"]: row for row in result["rows"]} for result in found["results"]
    }
    assert set(by_target) == {"faithfulness", "overall", "preferences"}
    judge, constant = by_target["overall"]["judge"], by_target["overall"]["constant"]
    assert judge["within"]["spearman"]["value"] > 0.8
    assert constant["within"]["pairs"]["value"] == 0.5
    assert constant["ahead"]["pairs"]["low"] > 0  # the judge is ahead of a constant, intervals apart
    assert by_target["preferences"]["judge"]["within"]["pairs"]["count"] == 30
    dimensions = found["dimensions"]["all"]
    losses = {row["reward"]: row["loss"] for row in dimensions["leave_one_out"]}
    assert losses["without logicality"]["value"] <= 0  # noise: leaving it out does no harm
    assert dimensions["weights"]["weights"]["logicality"] < 0.5
    text = capsys.readouterr().out
    assert "--weights helpfulness=" in text
    assert "what each dimension adds" in text
    assert "judge on faithfulness: one rating against the others" in text
    assert "Calibration of judge" in (output / "report.html").read_text()
    assert "| judge | 0." in (output / "agreement.md").read_text()


def test_several_judges_stand_side_by_side_with_paired_intervals(files, tmp_path, capsys):
    people, labels = files
    rows = [json.loads(line) for line in people.read_text().splitlines()]
    write_records(tmp_path / "noisy.jsonl", label_rows(rows, noise=6.0))
    write_records(tmp_path / "third.jsonl", label_rows(rows, noise=1.0)[:-8])
    judges = f"noisy={tmp_path / 'noisy.jsonl'},third={tmp_path / 'third.jsonl'}"
    words = [labels, "--prompts", people, "--judges", judges, "--bootstrap", "100"]
    assert run(*words, "--output", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    overall = next(result for result in found["results"] if result["target"] == "overall")
    assert [row["name"] for row in overall["rows"]][:3] == ["judge", "noisy", "third"]
    paired = {row["name"]: row["paired"]["spearman"] for row in overall["paired"]}
    assert list(paired) == ["judge minus noisy", "judge minus third", "noisy minus third"]
    assert paired["judge minus noisy"]["low"] > 0 > paired["noisy minus third"]["high"]
    between = found["between"]["faithfulness"]
    assert [row["judges"] for row in between["pairs"]] == [
        ["judge", "noisy"],
        ["judge", "third"],
        ["noisy", "third"],
    ]
    assert between["pairs"][1]["kappa"]["value"] > between["pairs"][0]["kappa"]["value"]
    assert 0 < between["alpha"]["low"] < between["alpha"]["value"] < between["alpha"]["high"] < 1
    assert between["pairs"][0]["somers_d"]["value"] < between["pairs"][0]["pairs"]["value"]
    assert "third: 8 of 120 answers have no label and are left out" in found["notes"]
    told = capsys.readouterr().out
    assert "judge minus judge" in told
    assert "judges among themselves on faithfulness: Krippendorff's α over all judges" in told
    assert "Judges among themselves" in (tmp_path / "out" / "report.html").read_text()
    assert run(*words, "--output", tmp_path / "twice", "--name", "noisy") == 2
    assert "call it otherwise" in capsys.readouterr().err


def test_few_documents_are_named_as_such(files, tmp_path, capsys):
    people, labels = files
    assert run(labels, "--prompts", people, "--output", tmp_path / "out", "--bootstrap", "20") == 0
    assert "15 documents are few: intervals over them are too narrow" in capsys.readouterr().out
    rows = human_rows(4)
    write_records(tmp_path / "two.jsonl", rows)
    assert run(tmp_path / "two.jsonl", "--output", tmp_path / "two", "--bootstrap", "20") == 0
    told = capsys.readouterr().out
    assert "2 documents are few" in told
    assert re.search(r"longer answer +\S+ \[–\]", told)  # no interval of width zero
    assert "2 documents are few" in (tmp_path / "two" / "report.html").read_text()


def test_human_values_alone_give_the_baselines(files, tmp_path, capsys):
    people, _ = files
    assert run(people, "--output", tmp_path / "out", "--bootstrap", "20") == 0
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    names = [row["name"] for row in found["results"][0]["rows"]]
    assert names == ["constant", "random, one draw", "longer answer", "shorter answer", "bigram support"]
    assert found["dimensions"] == {}
    assert "overall" in capsys.readouterr().out


def test_scored_prompts_are_matched_by_id_and_gaps_are_told(files, tmp_path):
    people, _ = files
    rows = human_rows()
    for row in rows:
        for i, response in enumerate(row["responses"]):
            response["scores"] = {"faithfulness": float(i)}
            response["reward"] = float(i)
    write_records(tmp_path / "scored.jsonl", rows[:10])
    inputs = read_scored(tmp_path / "scored.jsonl", [people])
    assert inputs.notes == ["80 of 120 answers have no score and are left out"]
    assert inputs.columns["faithfulness"][:4].tolist() == [0, 1, 2, 3]
    found = evaluate_human(inputs, replicates=20)
    assert found["results"][0]["rows"][0]["within"]["spearman"]["count"] == 10


def test_several_files_are_groups_and_tasks_beat_file_names(files, tmp_path):
    people, _ = files
    other = [{**row, "id": "b" + row["id"]} for row in human_rows(6, task="report")]
    write_records(tmp_path / "other.jsonl", other)
    inputs = read_scored(people, [people, tmp_path / "other.jsonl"])
    assert set(inputs.table.group_P) == {"people", "report"}
    with pytest.raises(UserError, match="another of the files"):
        read_scored(people, [people, people])


def test_what_cannot_be_compared_is_said(files, tmp_path, capsys):
    people, labels = files
    bare = [{**row, "preferences": []} for row in human_rows(2)]
    for row in bare:
        for response in row["responses"]:
            response["human"] = {"overall": None}
    write_records(tmp_path / "bare.jsonl", bare)
    assert run(tmp_path / "bare.jsonl", "--output", tmp_path / "o1") == 2
    assert "no judgement by people" in capsys.readouterr().err
    assert run(labels, "--output", tmp_path / "o2") == 2
    assert "--prompts FILE" in capsys.readouterr().err
    with pytest.raises(UserError, match="not labelled"):
        reweigh(read_scored(labels, [people]), {"charm": 2.0})


def test_weights_change_the_reward(files):
    people, labels = files
    inputs = read_scored(labels, [people])
    reweigh(inputs, dict.fromkeys(DIMENSIONS, 0.0) | {"faithfulness": 1.0})
    assert np.allclose(inputs.columns["reward"], inputs.columns["faithfulness"])


def test_raters_against_each_other():
    rows = human_rows(8)
    for row in rows:
        for response in row["responses"]:
            value = response["human"]["overall"]
            response["raters"] = {"overall": [value, value, min(10.0, value + 0.5)]}
        row["preferences"] += row["preferences"] + [
            {"winner": row["preferences"][0]["loser"], "loser": row["preferences"][0]["winner"]}
        ]
    table = build_table([Prompt.model_validate(row) for row in rows])
    bootstrap = DocumentBootstrap(table.document_P, 20)
    found = self_agreement(table, rater_values(table)["overall"], bootstrap)
    assert found["answers"] == 32
    assert found["spearman"]["value"] > 0.99
    assert found["spread"] == pytest.approx(np.sqrt(0.25 / 3))
    # Two votes one way, one the other: of three comparisons of two votes, one agrees.
    assert repeated_preferences(table, bootstrap)["agreement"]["value"] == pytest.approx(1 / 3)
    assert self_agreement(table, [[5.0]] * table.rows, bootstrap) is None
    assert vote_values(table, {}) == {}


def test_judge_baselines_stand_in_the_table(tmp_path, monkeypatch, capsys):
    """Through the real commands and the call store; only the model behind the engine is a rule."""
    rows = human_rows(6)
    write_records(tmp_path / "people.jsonl", rows)
    worth = {response["text"]: response["human"]["overall"] for row in rows for response in row["responses"]}
    asked: list[str] = []

    async def opened(config, store=None, **more):
        return RuleEngine(worth, asked)

    monkeypatch.setattr("judge_pipeline.engines.ask_all.open_engine", opened)
    words = [tmp_path / "people.jsonl", "--output", tmp_path / "out", "--bootstrap", "20"]
    words += ["--pairwise-judge", "--holistic"]
    assert run(*words) == 0
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    table = {result["target"]: {row["name"]: row for row in result["rows"]} for result in found["results"]}
    assert table["preferences"]["pairwise judge, both orders"]["within"]["pairs"]["value"] == 1.0
    assert table["overall"]["holistic judge"]["within"]["spearman"]["value"] == pytest.approx(1.0)
    assert found["judge_baselines"]["pairwise"]["inconsistent"] == 0
    assert found["judge_baselines"]["holistic"]["failed"] == 0
    assert len(asked) == 6 * 2 + 6 * 4
    assert "pairwise judge: 6 of 6 pairs judged" in capsys.readouterr().out
    assert run(*words) == 0  # the same settings again: every call is remembered
    assert len(asked) == 6 * 2 + 6 * 4


def fenced(text: str, name: str) -> str:
    return re.search(rf"<{name}-(\w+)>\n(.*)\n</{name}-\1>", text, re.DOTALL)[2]


class RuleEngine:
    """Rates an answer by what people gave it."""

    model = identity = "rule"
    supports_schema = False
    context_window = None

    def __init__(self, worth: dict[str, float], asked: list[str]) -> None:
        self.worth, self.asked = worth, asked

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        self.asked.append(call.template)
        text = call.messages[1].content
        if call.template == "baseline.holistic":
            return Reply(text=f"[[{self.worth[fenced(text, 'answer')]:.0f}]]")
        first, second = fenced(text, "first"), fenced(text, "second")
        return Reply(text="[[A]]" if self.worth[first] > self.worth[second] else "[[B]]")

    def where(self, routing: Routing) -> str:
        return "here"

    async def close(self) -> None: ...


def test_fitted_weights_can_be_handed_on(files, tmp_path, capsys):
    people, labels = files
    assert run(labels, "--prompts", people, "--output", tmp_path / "out", "--bootstrap", "20") == 0
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    fitted = found["dimensions"]["all"]["weights"]
    assert yaml.safe_load((tmp_path / "out" / "weights.yaml").read_text()) == {"all": fitted["weights"]}
    words = [labels, "--prompts", people, "--bootstrap", "20", *fitted["flag"].split()]
    assert run(*words, "--output", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again" / "agreement.json").read_text())
    accuracy = [
        next(row for row in result["rows"] if row["name"] == "judge")["within"]["pairs"]["value"]
        for result in (found["results"][-1], again["results"][-1])
    ]
    assert accuracy[1] >= accuracy[0]  # on the pairs they were fitted to
