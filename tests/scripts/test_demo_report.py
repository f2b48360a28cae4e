"""The quickstart's page: everything a run has, and a plain word for everything it has not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from judge_pipeline.common.record_files import read_prompts

sys.path.insert(0, str(Path(__file__).parents[1] / "judge_pipeline"))

from label_runs import make_label_run, write_lines

from scripts.demo import report
from scripts.demo.run import load_run

ROOT = Path(__file__).parents[2]


def make_quickstart_run(folder: Path) -> Path:
    """A run directory as the stages leave it: six prompts, four labelled, two of these kept out of training."""
    chosen = random.Random(1)
    labels = make_label_run(folder, prompts=6, answers=4)
    run = folder / "run"
    run.mkdir()
    labels.rename(run / "labels")
    (folder / "prompts.jsonl").rename(run / "answers.jsonl")
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    write_lines(run / "prompts.jsonl", [{**row, "responses": []} for row in rows])
    kept = [json.loads(line) for line in (run / "labels" / "labels.jsonl").read_text().splitlines()]
    write_lines(run / "labels" / "labels.jsonl", [row for row in kept if row["prompt_id"] < "vell-0005"])
    judged = {(row["prompt_id"], row["response_id"]): row["scores"] for row in kept}
    scored = []
    for row in rows[2:]:
        for response in row["responses"]:
            scores = {
                name: round(min(10.0, max(0.0, (value or 5.0) + chosen.gauss(0, 0.7))), 3)
                for name, value in judged[row["id"], response["id"]].items()
            }
            response |= {"scores": scores, "reward": sum(scores.values()) / 4}
        scored.append(row)
    (run / "fidelity").mkdir()
    write_lines(run / "fidelity" / "scored.jsonl", scored[:2])
    write_lines(run / "scored.jsonl", scored[2:])
    usage = {
        "engine": "torch",
        "responses": 8,
        "tokens_read": 9000,
        "tokens_one_by_one": 34000,
        "seconds": 12.5,
    }
    (run / "scored.jsonl.summary.json").write_text(json.dumps(usage))
    pairs = []
    for row in scored[2:]:
        worst, *_, best = sorted(row["responses"], key=lambda response: response["reward"])
        turns = {
            side: [{"role": "assistant", "content": one["text"]}]
            for side, one in (("chosen", best), ("rejected", worst))
        }
        rewards = {"chosen_reward": best["reward"], "rejected_reward": worst["reward"]}
        pairs.append({"prompt": [{"role": "user", "content": row["query"]}], **turns, **rewards})
    write_lines(run / "pairs.jsonl", pairs)
    for name in ("reward_model", "dpo"):
        (run / name).mkdir()
    steps = range(1, 25)
    write_lines(
        run / "reward_model" / "metrics.jsonl",
        [{"step": step, "loss": 2 / step**0.5} for step in steps]
        + [{"step": 24, "eval_loss": 0.6, "num_input_tokens_seen": 51000}],
    )
    dpo = [
        {
            "step": step,
            "loss": 0.8 - step / 90,
            "rewards/margins": step / 40,
            "rewards/accuracies": min(1.0, 0.4 + step / 30),
            "rewards/chosen": step / 60,
            "rewards/rejected": -step / 120,
            "num_tokens": 1000.0 * step,
            "tokens_saved": 480.0 * step,
        }
        for step in steps
    ]
    write_lines(run / "dpo" / "metrics.jsonl", dpo)
    (run / ".stages").mkdir()
    for name, seconds in (("label", 212), ("prompts", 1), ("sample", 140), ("train", 95), ("score", 13)):
        (run / ".stages" / name).write_text(f"123 456\n{seconds}\n")
    return run


@pytest.fixture
def finished(tmp_path):
    return make_quickstart_run(tmp_path)


def write(run: Path, capsys) -> tuple[str, str]:
    assert report.main([str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out


def test_a_finished_run_shows_every_part(finished, capsys):
    page, out = write(finished, capsys)
    for anchor in (
        *("glance", "stages", "scores", "prompt", "statements", "agreement", "spent", "pairs", "training"),
        "next",
    ):
        assert f'<section id="{anchor}"' in page
    assert "is not here" not in page
    assert "smoke test of the machinery, not a good judge" in page
    assert "The mole was paid for by a tax on tea." in page
    assert "<mark>The council paid for the mole with a tax on salt" in page
    assert out.rstrip().splitlines()[-3:] == [
        f"  {line}" for line in report.next_commands(load_run(finished))
    ]
    assert "label" in out
    assert "3 min 32 s" in out


def test_figures_are_those_of_the_files(finished):
    run = load_run(finished)
    assert [*run.seconds] == ["prompts", "sample", "label", "train", "score"]
    assert len(run.labels) == 16
    both = [key for key in run.labels if key in run.scored]
    assert len(both) == 8  # the two labelled prompts that training did not see
    points = [(run.labels[key].scores["helpfulness"], run.scored[key]["helpfulness"]) for key in both]
    rank, distance = report.agreement_figures(points)
    ranks = __import__("pandas").DataFrame(points).rank().corr().iloc[0, 1]  # Pearson of ranks
    assert rank == pytest.approx(ranks)
    assert distance == pytest.approx(sum(abs(a - b) for a, b in points) / 8)
    page = report.spending(run).html
    judge = (24 * 9100 + 24 * 710) / 16  # all the run ever asked, over its sixteen labels
    assert f"{judge / (9000 / 8):.1f} times" in page
    assert "saved 74%" in page
    assert "51,000" in page
    assert "saved 48% of 24,000 tokens" in report.curves(run).html


def test_a_run_that_has_only_begun_says_what_is_absent(tmp_path, capsys):
    run = make_quickstart_run(tmp_path)
    for path in sorted(run.rglob("*"), reverse=True):
        if path.name != "prompts.jsonl" and path != run:
            path.unlink() if path.is_file() else path.rmdir()
    page, out = write(run, capsys)
    for words in (
        "No stage has left its time here",
        "The judge has not labelled anything here",
        "The reward model has not scored anything here",
        "There are no answers here yet",
        "No answer outside training was scored by both",
        "No pairs have been made here",
        "The reward model has no metrics here",
        "DPO has no metrics here",
    ):
        assert words in page
    assert "Try next" in out


def test_a_real_judge_is_not_called_a_smoke_test(finished, capsys):
    settings = finished / "labels" / "run.yaml"
    text = settings.read_text().replace("smollm2", "a-real-judge").replace("[]", "[http://localhost:8000/v1]")
    settings.write_text(text)
    page, out = write(finished, capsys)
    assert "smoke test" not in page + out


def test_hostile_answers_stay_text(finished, capsys):
    prompts = [prompt.model_dump() for prompt in read_prompts(finished / "answers.jsonl")]
    for prompt in prompts:
        for response in prompt["responses"]:
            response["text"] = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    write_lines(finished / "answers.jsonl", prompts)
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


def test_figures_of_the_evaluation_are_taken_over(finished, tmp_path, capsys):
    """What `reward-model evaluate` really writes fits in, with its baselines and intervals."""
    from reward_model.fidelity.evaluate import run as evaluate
    from reward_model.fidelity.evaluate_config import EvaluateConfig

    config = EvaluateConfig(
        model=finished / "reward_model",
        labels=finished / "labels",
        prompts=[finished / "answers.jsonl"],
        scores=finished / "fidelity" / "scored.jsonl",
        output=tmp_path / "evaluated",
        embedding_model="none",
        bootstrap=20,
    )
    assert evaluate(config) == 0
    (tmp_path / "evaluated" / "fidelity.json").rename(finished / "fidelity" / "fidelity.json")
    page, _ = write(finished, capsys)
    part = page[page.index('<section id="agreement"') : page.index('<section id="spent"')]
    assert "All figures for the reward, beside baselines" in part
    assert "best of N" in part
