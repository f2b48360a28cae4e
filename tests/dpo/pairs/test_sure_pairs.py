"""Pairs that do not teach length, and pairs whose order the reward model is sure of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dpo_helpers import make, read_jsonl, scored_rows, write_jsonl

from judge_pipeline.common.records import DIMENSIONS, Prompt


def test_pairs_matched_in_length_are_the_widest_of_those(tmp_path):
    rows = scored_rows(2)
    for position, answer in enumerate(rows[0]["responses"]):  # the best is four times as long as the worst
        answer |= {
            "text": f"{position}" + "x" * (9, 13, 16, 30, 39)[position],
            "reward": (1.0, 2, 8, 3, 9)[position],
        }
    for position, answer in enumerate(rows[1]["responses"]):
        answer["text"] = str(position) + "x" * 10 ** (position + 1)
    ids = {"chosen_id": ("sample-4", "sample-2"), "rejected_id": ("sample-0", "sample-0")}
    for flags, position in (((), 0), (("--max-length-ratio", "1.7"), 1)):
        _, output = make(tmp_path, rows, *flags)
        pair = read_jsonl(output)[0]
        assert {name: pair[name] for name in ids} == {name: both[position] for name, both in ids.items()}
    assert len(read_jsonl(output)) == 1
    left_out = json.loads(Path(f"{output}.report.json").read_text())["left_out"]
    assert left_out["prompts: no two answers within 1.7 times each other's length"] == 1
    _, output = make(tmp_path, rows, "--max-length-ratio", "1.7", "--pairs", "all")
    lengths = [
        sorted(len(row[side][0]["content"]) for side in ("chosen", "rejected")) for row in read_jsonl(output)
    ]
    assert len(lengths) > 1
    assert all(longer <= 1.7 * shorter for shorter, longer in lengths)


def calibrated(tmp_path: Path, noise: float, slope: float = 2.0) -> list[dict[str, Any]]:
    """Twenty prompts, the judge's rewards `slope` times the model's with a noise, and the same for the first ten."""
    rng = np.random.default_rng(0)
    rows, labels = scored_rows(20), []
    for row in rows:
        for answer in row["responses"]:
            answer["reward"] = 5 + float(rng.normal(0, 0.5))
            reward = float(np.clip(5 + slope * (answer["reward"] - 5) + rng.normal(0, noise), 0, 10))
            labels.append(
                {"prompt_id": row["id"], "response_id": answer["id"], "reward": reward, "status": "labelled",
                 "scores": dict.fromkeys(DIMENSIONS, reward)}
            )  # fmt: skip
    write_jsonl(tmp_path / "labels.jsonl", labels[:50])
    return rows


def test_the_margin_follows_from_the_reward_models_errors(tmp_path, capsys):
    rows = calibrated(tmp_path, noise=0.5)
    labels = str(tmp_path / "labels.jsonl")
    code, output = make(tmp_path, rows, "--sureness", "0.9", "--sure-labels", labels, "--pairs", "all")
    assert code == 0
    certainty = json.loads(Path(f"{output}.report.json").read_text())["certainty"]
    assert certainty["slope"] == pytest.approx(2.0, rel=0.15)
    assert certainty["error"] == pytest.approx(0.5 * 2**0.5, rel=0.3)
    # Φ⁻¹(0.9) errors of a difference, in the model's points
    assert certainty["least_margin"] == pytest.approx(
        1.2816 * certainty["error"] / certainty["slope"], rel=1e-3
    )
    assert "measured on 50 answers of 10 prompts" in capsys.readouterr().out
    pairs = read_jsonl(output)
    assert min(pair["margin"] for pair in pairs) >= certainty["least_margin"]
    assert min(pair["order_probability"] for pair in pairs) >= 0.9
    noisy = calibrated(tmp_path, noise=2.0)
    code, output = make(tmp_path, noisy, "--sureness", "0.9", "--sure-labels", labels, "--pairs", "all")
    assert (
        json.loads(Path(f"{output}.report.json").read_text())["certainty"]["least_margin"]
        > 2 * certainty["least_margin"]
    )


def test_the_judges_own_rewards_need_no_margin(tmp_path):
    rows = calibrated(tmp_path, noise=1.0)
    flags = ("--labels", str(tmp_path / "labels.jsonl"), "--sureness", "0.999")
    code, output = make(tmp_path, rows, *flags)
    assert code == 0
    pairs = read_jsonl(output)
    assert sum(pair["rewards_of"] == "labels" for pair in pairs) == 10
    assert all(pair["order_probability"] is None for pair in pairs if pair["rewards_of"] == "labels")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sureness", "0.9"), "needs --labels or --sure-labels"),
        (("--sureness", "0.9", "--sure-labels", "FEW"), "too few answers with both rewards"),
        (("--sureness", "0.9", "--sure-labels", "AGAINST"), "has nothing to do with"),
        (("--arm", "contrast", "--reference", "m", "--max-length-ratio", "2"), "--arm contrast"),
    ],
)
def test_a_sureness_that_cannot_be_had_is_refused(tmp_path, capsys, flags, words):
    rows = calibrated(tmp_path, noise=0.1, slope=-2.0)
    labels = read_jsonl(tmp_path / "labels.jsonl")
    (tmp_path / "AGAINST").mkdir()
    write_jsonl(tmp_path / "AGAINST" / "labels.jsonl", labels)
    (tmp_path / "FEW").mkdir()
    write_jsonl(tmp_path / "FEW" / "labels.jsonl", labels[:5])
    flags = tuple(str(tmp_path / flag) if flag in ("FEW", "AGAINST") else flag for flag in flags)
    assert make(tmp_path, rows, *flags)[0] == 2
    assert words in capsys.readouterr().err


def test_documents_that_the_reward_model_was_trained_on_tell_nothing(tmp_path, capsys):
    from reward_model.data.splits import document_digests
    from reward_model.modeling.model import MANIFEST

    rows = calibrated(tmp_path, noise=0.5)
    model = tmp_path / "rm"
    model.mkdir()
    trained = document_digests([Prompt.model_validate(row) for row in rows[:8]])
    frame = {"head": "", "middle": "", "end": ""}
    manifest = {
        "base_model": "m",
        "max_length": 99,
        "prompt_format": frame,
        "trained_documents": trained,
    }
    (model / MANIFEST).write_text(json.dumps(manifest))
    run = {"command": "reward-model score", "config": {"model": str(model)}}
    (tmp_path / "scored.jsonl.run.yaml").write_text(yaml.safe_dump(run))
    flags = ("--sureness", "0.9", "--sure-labels", str(tmp_path / "labels.jsonl"))
    assert make(tmp_path, rows, *flags)[0] == 2  # two prompts are left
    assert "too few answers with both rewards" in capsys.readouterr().err
    trained = document_digests([Prompt.model_validate(row) for row in rows[:2]])
    (model / MANIFEST).write_text(json.dumps({**manifest, "trained_documents": trained}))
    assert make(tmp_path, rows, *flags)[0] == 0
    assert "measured on 40 answers of 8 prompts" in capsys.readouterr().out
