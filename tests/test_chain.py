"""The whole chain, small and real: SmolLM2 answers and judges, a reward model learns, scores, and DPO trains on it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForSequenceClassification

from dpo.cli import main as dpo
from judge_pipeline.cli import main as judge_pipeline
from judge_pipeline.common.records import DIMENSIONS
from reward_model.cli import main as reward_model
from reward_model.scoring.scorer import RewardModel

pytestmark = pytest.mark.slow

QUESTIONS = {
    "assert": "When is an assert statement removed from the program?",
    "pass": "What does the pass statement do, and where is it useful?",
    "break": "What happens to the else clause of a loop that is left with break?",
    "del": "What does deleting a name from a namespace do?",
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def finished_calls(labels: Path) -> int:
    with sqlite3.connect(labels / "calls.sqlite") as store:
        return int(store.execute("select count(*) from calls").fetchone()[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage once, through the console commands' own entry points."""
    run = tmp_path_factory.mktemp("chain")
    prompts = [
        {"id": name, "document_id": name, "context": topics[name][:1500], "query": question}
        for name, question in QUESTIONS.items()
    ]
    (run / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")

    def file(name: str) -> str:
        return str(run / name)

    def ok(status: int) -> None:
        assert status == 0

    sample = ["sample", file("prompts.jsonl"), "--model", "smollm2", "--output", file("answers.jsonl")]
    ok(dpo([*sample, "--n", "3", "--max-new-tokens", "40"]))
    label = ["label", file("answers.jsonl"), "--output", file("labels"), "--judge.model", "smollm2"]
    few = ["--few-shot", "0", "--analysis-chars", "80", "--max-statements", "2", "--max-key-points", "2"]
    label += [*few, "--item-chars", "80", "--max-tokens", "256", "--statements-per-call", "6"]
    assert judge_pipeline(label) in (0, 3)  # 3: a dimension is missing somewhere, with its reason
    before = finished_calls(run / "labels")
    judge_pipeline(label)
    assert finished_calls(run / "labels") == before
    train = ["train", file("labels"), "--base-model", "smollm2", "--output", file("rm"), "--method", "full"]
    ok(
        reward_model(
            [*train, "--freeze-layers", "28", "--epochs", "1", "--eval-fraction", "0.25", "--allow-constant"]
        )
    )
    ok(reward_model(["score", file("rm"), file("answers.jsonl"), "--output", file("scored.jsonl")]))
    ok(
        dpo(
            [
                "pairs",
                file("scored.jsonl"),
                "--output",
                file("pairs.jsonl"),
                "--min-responses",
                "2",
                "--keep-flagged",
                "truncated",
            ]
        )
    )
    fit = [
        "train",
        file("pairs.jsonl"),
        "--model",
        "smollm2",
        "--output",
        file("policy"),
        "--eval-fraction",
        "0",
    ]
    ok(dpo([*fit, "--max-steps", "2", "--gradient-accumulation-steps", "1", "--gradient-checkpointing"]))
    return run


def test_every_answer_is_labelled_or_says_why(run: Path) -> None:
    answers = {(row["id"], item["id"]) for row in rows(run / "answers.jsonl") for item in row["responses"]}
    labels = rows(run / "labels" / "labels.jsonl")
    assert {(row["prompt_id"], row["response_id"]) for row in labels} == answers
    complete = 0
    for row in labels:
        missing = {name for name in DIMENSIONS if row["scores"].get(name) is None}
        assert missing == {failure["dimension"] for failure in row["failures"]}
        assert all(0 <= score <= 10 for score in row["scores"].values() if score is not None)
        # An answer that states no facts has no faithfulness, by rule: that is a label, not a failure.
        complete += all(failure["reason"] == "no_statements" for failure in row["failures"])
    assert complete >= 0.9 * len(labels)


def test_scores_are_those_of_plain_transformers_one_answer_at_a_time(run: Path) -> None:
    best, reader = (
        RewardModel.from_pretrained(run / "rm", device="cpu", dtype="float32", readout=readout)
        for readout in ("best", "plain")
    )
    plain = AutoModelForSequenceClassification.from_pretrained(run / "rm", dtype=torch.float32).eval()
    for row in rows(run / "scored.jsonl"):
        texts = [item["text"] for item in row["responses"]]
        encoded = reader.encode(row["context"], row["query"], texts)
        shared = reader.score(row["context"], row["query"], texts)
        written = best.score(row["context"], row["query"], texts)
        for place, (ids, item) in enumerate(zip(encoded.answers, row["responses"], strict=True)):
            with torch.no_grad():
                expected = plain(input_ids=torch.tensor([[*encoded.prefix.tolist(), *ids.tolist()]])).logits[
                    0
                ]
            torch.testing.assert_close(torch.tensor(shared[place]), expected, atol=1e-4, rtol=0)
            found = [item["scores"][name] for name in DIMENSIONS]
            np.testing.assert_allclose(found, written[place].clip(0, 10), atol=1e-4)


def test_pairs_load_as_a_dataset_and_the_trained_policy_loads(run: Path, tmp_path: Path) -> None:
    pairs = load_dataset("json", data_files=str(run / "pairs.jsonl"), split="train", cache_dir=str(tmp_path))
    assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names)
    scored = {row["id"]: row for row in rows(run / "scored.jsonl")}
    for pair in pairs:
        rewards = [item["reward"] for item in scored[pair["prompt_id"]]["responses"]]
        assert pair["chosen_reward"] == max(rewards)
        assert pair["rejected_reward"] == min(rewards)
    policy = AutoPeftModelForCausalLM.from_pretrained(run / "policy")
    moved = [value.abs().sum() for name, value in policy.named_parameters() if "lora_B" in name]
    assert moved
    assert sum(moved) > 0
