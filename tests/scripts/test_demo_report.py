"""The quickstart's page: everything a run has, and a plain word for everything it has not."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from judge_pipeline.common.record_files import read_labels, read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS
from reward_model.data.evidence import answer_sentences
from reward_model.fidelity.evaluate import run as evaluate
from reward_model.fidelity.evaluate_config import EvaluateConfig
from scripts.demo import report
from scripts.demo.prompts import JUDGED, SHOWN, deal
from scripts.demo.proof import ahead_of_withheld, best_baseline, pairs_of
from scripts.demo.run import load_run

sys.path.insert(0, str(Path(__file__).parents[1] / "judge_pipeline"))

from label_runs import make_label_run, write_lines

ROOT = Path(__file__).parents[2]


def scored(source: Path, noise: float, seed: int, labels: dict) -> list[dict]:
    """The prompts of a file with scores near their labels; changed answers three points below what they were."""
    rng = random.Random(seed)
    rows = []
    for prompt in read_prompts(source):
        row = prompt.model_dump(mode="json", exclude_none=True)
        points = {}
        for item in row["responses"]:
            change = item.get("augmented")
            known = labels.get((prompt.id, change["from"] if change else item["id"]))
            points[item["id"]] = {
                name: min(10.0, max(0.0, (known.scores[name] or 5.0) * (noise < 5) + rng.gauss(0, noise)))
                for name in DIMENSIONS
            }
            if change and noise < 5:
                points[item["id"]]["faithfulness"] = max(0.0, points[change["from"]]["faithfulness"] - 3)
            item["scores"] = points[item["id"]]
            item["reward"] = sum(item["scores"].values()) / 4
        rows.append(row)
    return rows


def make_quickstart_run(folder: Path) -> Path:
    """A run directory as the stages leave it, with an evaluation that `reward-model evaluate --folds` made."""
    run = folder / "run"
    deal(JUDGED.with_name("labels.jsonl"), run / "demo")
    labels = {(row.prompt_id, row.response_id): row for row in read_labels(JUDGED.with_name("labels.jsonl"))}
    learn = [
        prompt.model_dump(mode="json", exclude_none=True)
        for prompt in read_prompts(run / "demo" / "learn.jsonl")
    ]
    for row in learn:
        first = row["responses"][0]
        change = {
            "from": first["id"],
            "dimension": "faithfulness",
            "strength": 1,
            "damage": "names",
            "keeps": [],
        }
        row["responses"].append({"id": "changed", "text": first["text"] + " Not so.", "augmented": change})
    write_lines(run / "changed.jsonl", learn)
    model = run / "reward_model"
    for name, noise in (("scored", 1.0), ("withheld", 9.0)):
        write_records(model / "folds" / f"{name}.jsonl", scored(run / "changed.jsonl", noise, 1, labels))
    (model / "run.yaml").write_text("config: {base_model: smollm2}\n")
    config = EvaluateConfig(
        model=model,
        labels=run / "demo" / "learn_labels.jsonl",
        prompts=[run / "demo" / "learn.jsonl"],
        contrasts=run / "changed.jsonl",
        folds=True,
        output=run / "fidelity",
        embedding_model="none",
        likelihood="off",
        card=False,
        bootstrap=50,
    )
    assert evaluate(config) == 0
    shown = scored(run / "demo" / "shown.jsonl", 1.0, 2, labels)
    for row in shown:
        for item in row["responses"]:
            item["explain"] = [
                {
                    "start": one.start,
                    "end": one.end,
                    "support": 0.2 if number == 0 else 0.9,
                    "flagged": number == 0,
                    "document": {"start": 5, "end": 300, "share": 0.2},
                }
                for number, one in enumerate(answer_sentences(item["text"]))
            ]
    write_lines(run / "explained.jsonl", shown)
    (run / "explained.jsonl.summary.json").write_text(json.dumps({"responses": 12, "seconds": 9.0}))
    live(folder, run)
    return run


def live(folder: Path, run: Path) -> None:
    """What sampling, this run's judge, scoring, pairs and DPO leave."""
    rng = random.Random(1)
    made = make_label_run(folder, prompts=4, answers=4)
    shutil.move(made, run / "labels")
    (folder / "prompts.jsonl").rename(run / "answers.jsonl")
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    pairs = []
    for row in rows:
        for item in row["responses"]:
            item["scores"] = {name: rng.uniform(2, 9) for name in DIMENSIONS}
            item["reward"] = sum(item["scores"].values()) / 4
        worst, *_, best = sorted(row["responses"], key=lambda item: item["reward"])
        turns = {
            side: [{"role": "assistant", "content": one["text"]}]
            for side, one in (("chosen", best), ("rejected", worst))
        }
        rewards = {"chosen_reward": best["reward"], "rejected_reward": worst["reward"]}
        pairs.append({"prompt": [{"role": "user", "content": row["query"]}], **turns, **rewards})
    write_lines(run / "scored.jsonl", rows)
    usage = {
        "engine": "torch",
        "responses": 16,
        "tokens_read": 9000,
        "tokens_one_by_one": 34000,
        "seconds": 12.5,
    }
    (run / "scored.jsonl.summary.json").write_text(json.dumps(usage))
    write_lines(run / "pairs.jsonl", pairs)
    (run / "dpo").mkdir()
    steps = [
        {
            "step": step,
            "loss": 0.8 - step / 90,
            "rewards/margins": step / 40,
            "num_tokens": 1000.0 * step,
            "tokens_saved": 480.0 * step,
        }
        for step in range(1, 5)
    ]
    steps.append({"step": 4, "eval_rewards/accuracies": 1.0, "eval_rewards/margins": 0.0123})
    write_lines(run / "dpo" / "metrics.jsonl", steps)
    (run / ".stages").mkdir()
    for name, seconds in (("label", 212), ("prompts", 1), ("sample", 140), ("train", 95), ("score", 13)):
        (run / ".stages" / name).write_text(f"123 456\n{seconds}\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_quickstart_run(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture
def finished(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def write(run: Path, capsys) -> tuple[str, str]:
    assert report.main([str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out


def test_a_finished_run_shows_every_part(finished, capsys):
    page, out = write(finished, capsys)
    for anchor in ("proof", "documents", "agreement", "judge", "pairs", "dpo", "spent", "next"):
        assert f'<section id="{anchor}"' in page
    assert "has not been measured here" not in page
    assert "SmolLM2 with 135 million parameters learnt from 204 answers that a capable judge labelled" in page
    assert "So the model reads what the document says." in page
    assert out.rstrip().splitlines()[-3:] == [
        f"  {line}" for line in report.next_commands(load_run(finished))
    ]
    assert "3 min 32 s" in page + out


def test_figures_are_those_of_the_evaluation(finished, capsys):
    page, _ = write(finished, capsys)
    found = json.loads((finished / "fidelity" / "fidelity.json").read_text())
    reward = next(result for result in found["results"] if result["target"] == "reward")
    figure = pairs_of(reward, "reward model")
    assert f"puts {figure['value']:.0%} of answers in the judge&#39;s order" in page
    name, baseline = best_baseline(reward)
    others = [pairs_of(reward, row["name"])["value"] for row in reward["rows"] if row["kind"] == "baseline"]
    assert baseline["value"] == max(value for value in others if value is not None)
    assert f"{baseline['value']:.0%} {name}" in page
    (changed,) = found["changed"]
    assert pairs_of(changed, "reward model")["value"] > 0.95
    assert ahead_of_withheld(changed)["low"] > 0
    calls = [row.usage.calls for row in read_labels(finished / "demo" / "learn_labels.jsonl")]
    assert f"{sum(calls) / len(calls):.1f} calls" in page
    assert "0.8 s on this machine" in page


def test_a_model_that_knows_no_document_is_not_praised(finished, capsys):
    found = json.loads((finished / "fidelity" / "fidelity.json").read_text())
    for row in found["changed"][0]["rows"]:
        if row["name"] == "document withheld":
            row["ahead"]["pairs"] = {"value": 0.02, "low": -0.05, "high": 0.09}
    (finished / "fidelity" / "fidelity.json").write_text(json.dumps(found))
    reward = next(result for result in found["results"] if result["target"] == "reward")
    next(row for row in reward["rows"] if row["name"] == "document withheld")["ahead"]["pairs"] = {
        "value": -0.05,
        "low": -0.09,
        "high": -0.01,
    }
    (finished / "fidelity" / "fidelity.json").write_text(json.dumps(found))
    page, _ = write(finished, capsys)
    assert "On reward the model that was fitted without documents is even ahead" in page
    assert "So it is not shown that the model reads what the document says." in page
    assert "So the model reads what" not in page


def test_a_document_is_shown_with_its_answers_as_judge_and_model_see_them(finished, capsys):
    page, _ = write(finished, capsys)
    part = page[page.index('<section id="documents"') : page.index('<section id="agreement"')]
    prompts = list(read_prompts(finished / "explained.jsonl"))
    assert {prompt.id for prompt in prompts} == set(SHOWN)
    assert part.count('<article class="case">') == 12
    assert part.count('<mark class="flag"') == 12
    assert "support 0.20; looks at: “" in part
    assert "The judge checked" in part
    labels = {
        (row.prompt_id, row.response_id): row for row in read_labels(finished / "demo" / "shown_labels.jsonl")
    }
    rewards = [labels[prompts[0].id, item.id].reward for item in prompts[0].responses]
    first = part[part.index("best") : part.index("worst")]
    assert f'<td class="number">{max(rewards):.1f}'.removesuffix(".0") in first


def test_dpo_that_moved_nothing_is_said_to(finished, capsys):
    page, _ = write(finished, capsys)
    assert "gained on the rejected one in 100% of them (margin +0.0123)" in page
    rows = [json.loads(line) for line in (finished / "dpo" / "metrics.jsonl").read_text().splitlines()]
    rows[-1] |= {"eval_rewards/accuracies": 0.5, "eval_rewards/margins": -0.001}
    write_lines(finished / "dpo" / "metrics.jsonl", rows)
    page, _ = write(finished, capsys)
    assert "did not gain on the rejected one in more than half of them (50%, margin -0.0010)" in page


def test_a_run_that_has_only_begun_says_what_is_absent(finished, capsys):
    for path in sorted(finished.rglob("*"), reverse=True):
        if path.name != "answers.jsonl":
            path.unlink() if path.is_file() else path.rmdir()
    page, out = write(finished, capsys)
    for words in (
        "The reward model has not been measured here",
        "No answers have been explained here",
        "No stage has left its time here",
        "The judge has not labelled anything here",
        "The reward model has not scored anything here",
        "No answer outside training was scored by both",
        "DPO has no metrics here",
    ):
        assert words in page
    assert "Try next" in out


def test_a_real_judge_is_not_called_a_smoke_test(finished, capsys):
    page, _ = write(finished, capsys)
    assert "shows the machinery at work" in page
    settings = finished / "labels" / "run.yaml"
    text = settings.read_text().replace("smollm2", "a-real-judge").replace("[]", "[http://localhost:8000/v1]")
    settings.write_text(text)
    (finished / "labels_yours").mkdir()
    page, out = write(finished, capsys)
    assert "shows the machinery at work" not in page + out
    assert "that your judge labelled" in page


def test_hostile_answers_stay_text(finished, capsys):
    rows = [json.loads(line) for line in (finished / "explained.jsonl").read_text().splitlines()]
    for row in rows:
        row["query"] = row["context"] = "</script><script>alert(1)</script>" + row["context"]
        for response in row["responses"]:
            response["text"] = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
            response["explain"] = [{"start": 0, "end": 20, "support": 0.1, "flagged": True, "document": None}]
    write_lines(finished / "explained.jsonl", rows)
    page, _ = write(finished, capsys)
    assert "<script>alert" not in page
    assert "<img" not in page


def test_the_script_runs_by_itself_and_explains_a_wrong_directory(finished):
    script = [sys.executable, "-m", "scripts.demo.report"]
    done = subprocess.run([*script, str(finished)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*script, "no/such/run"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "no/such/run is not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_file_is_named(finished, capsys):
    (finished / "scored.jsonl.summary.json").write_text("{")
    assert report.main([str(finished)]) == 2
    assert "scored.jsonl.summary.json" in capsys.readouterr().err
