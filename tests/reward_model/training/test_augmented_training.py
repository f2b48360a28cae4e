"""Answers made worse on purpose are learnt from, in the closed form and by gradient."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts, write_records
from reward_model.scoring.scorer import RewardModel
from reward_model.training.contrast_loss import EQUAL_DELTA, contrast_loss, count_contrasts
from reward_model.training.losses import Standardizer
from reward_model.training.objective import Objective
from reward_model.training.run_data import make_objective, read_data
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig

NAN = float("nan")
FAITHFULNESS = 2


def test_the_loss_is_the_loop():
    rng = np.random.default_rng(0)
    predictions = torch.tensor(rng.normal(size=(7, 3)), requires_grad=True)
    better, worse = torch.tensor([0, 2, 5, 1]), torch.tensor([1, 3, 4, 6])
    gaps = torch.tensor([[2.0, 0.0, NAN], [NAN, NAN, 1.0], [0.0, 0.0, 3.0], [NAN, NAN, NAN]]).double()
    total, terms = 0.0, 0
    for i, j, row in zip(better.tolist(), worse.tolist(), gaps.tolist(), strict=True):
        for d, gap in enumerate(row):
            margin = float((predictions[i, d] - predictions[j, d]).detach())
            if gap > 0:
                total += np.log1p(np.exp(-margin))
            elif gap == 0:
                small = abs(margin) <= EQUAL_DELTA
                total += 0.5 * margin**2 if small else EQUAL_DELTA * (abs(margin) - EQUAL_DELTA / 2)
            terms += gap == gap
    loss, parts = contrast_loss(predictions, better, worse, gaps)
    assert count_contrasts(gaps) == terms == 6
    assert loss.item() == pytest.approx(total / terms)
    assert parts["contrast"].item() == pytest.approx(loss.item())
    half, _ = contrast_loss(predictions, better, worse, gaps, normaliser=12.0)
    assert half.item() == pytest.approx(total / 12)
    assert torch.autograd.gradcheck(lambda x: contrast_loss(x, better, worse, gaps)[0], predictions)


def test_without_contrasts_the_loss_is_zero_and_connected():
    predictions = torch.ones(2, 3, requires_grad=True)
    none = torch.empty(0, dtype=torch.long)
    loss, _ = contrast_loss(predictions, none, none, torch.empty(0, 3))
    loss.backward()
    assert loss == 0
    assert (predictions.grad == 0).all()


def batch() -> dict:
    targets = torch.tensor([[1.0, 2.0], [3.0, 5.0], [NAN, NAN]])
    return {
        "targets_A_D": targets,
        "confidence_A_D": torch.ones_like(targets),
        "groups_A": torch.tensor([0, 0, 0]),
        "winners_P": torch.empty(0, dtype=torch.long),
        "losers_P": torch.empty(0, dtype=torch.long),
        "better_C": torch.tensor([1]),
        "worse_C": torch.tensor([2]),
        "gaps_C_D": torch.tensor([[1.0, 0.0]]),
    }


@pytest.mark.parametrize("name", ["regression", "pairwise", "regression+pairwise", "sequence", "level+order"])
def test_contrasts_stand_beside_every_loss_with_their_weight(name):
    made, predictions = batch(), torch.randn(3, 2)
    standardizer = Standardizer.fit(made["targets_A_D"], torch.ones(2))
    plain, parts = Objective(name, standardizer).loss(predictions, made, 0.9)
    assert "contrast" not in parts
    loss, parts = Objective(name, standardizer, contrast_weight=0.3).loss(predictions, made, 0.9)
    torch.testing.assert_close(loss, plain + 0.3 * parts["contrast"])
    held_out = {key: value for key, value in made.items() if not key.endswith(("_C", "_C_D"))}
    torch.testing.assert_close(
        Objective(name, standardizer, contrast_weight=0.3).loss(predictions, held_out, 0.9)[0], plain
    )


def test_two_half_batches_add_up_to_the_whole():
    made, predictions = batch(), torch.randn(3, 2)
    objective = Objective(
        "regression", Standardizer.fit(made["targets_A_D"], torch.ones(2)), contrast_weight=1.0
    )
    both = objective.count(made) + objective.count(made)
    once, _ = objective.loss(predictions, made, 0.0)
    half, _ = objective.loss(predictions, made, 0.0, both)
    torch.testing.assert_close(2 * half, once)


@pytest.fixture
def augmented(label_run):
    """(label run whose faithfulness labels are noise, a file that says that "yes" is faithful and "no" is not)."""
    run = label_run(count=24, answers=3)
    rng = random.Random(1)
    rows = [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()]
    for row in rows:
        row["scores"]["faithfulness"] = float(rng.randint(3, 7))
    write_records(run / "labels.jsonl", rows)
    records = []
    for prompt in read_prompts(run.parent / "prompts.jsonl"):
        responses = [item.model_dump(exclude_unset=True) for item in prompt.responses]
        for item in list(responses):
            text = item["text"].replace("yes", "no")
            if text != item["text"]:
                field = {
                    "from": item["id"],
                    "dimension": "faithfulness",
                    "strength": 3,
                    "damage": "no",
                    "keeps": [],
                }
                responses.append(
                    {"id": item["id"] + "~1", "text": text, "source": "augmented", "augmented": field}
                )
        records.append(
            {
                **prompt.model_dump(exclude_unset=True),
                "document_id": prompt.document_id,
                "responses": responses,
            }
        )
    path = run.parent / "augmented.jsonl"
    write_records(path, records)
    return run, path


def settings(run, base, output, **changes):
    values = {"method": "probe", "token_budget": 1500, "device": "cpu", "eval_fraction": 0.25}
    return TrainConfig.model_validate(
        {"labels": run, "base_model": str(base), "output": output, **(values | changes)}
    )


def order(model_dir, run) -> float:
    """How many of the answers that say "yes" four times beat those that never do, in faithfulness."""
    model = RewardModel.from_pretrained(model_dir, "cpu")
    prompt = next(read_prompts(run.parent / "prompts.jsonl"))
    texts = [f"yes yes yes yes {word}" for word in ("river", "stone", "copper")]
    texts += [f"no no no no {word}" for word in ("river", "stone", "copper")]
    points = model.score(prompt.context, prompt.query, texts)[:, FAITHFULNESS]
    return float(points[:3].mean() - points[3:].mean())


@pytest.mark.usefixtures("one_thread")
def test_the_probe_learns_from_changed_answers_what_no_label_says(augmented, tiny_base, tmp_path, capsys):
    run, path = augmented
    gaps = []
    for number, changes in enumerate(({}, {"augment": path, "augment_weight": 0.01}, {"augment": path})):
        gaps.append(order(train(settings(run, tiny_base, tmp_path / str(number), **changes)), run))
    text = capsys.readouterr().err
    assert "pairs of answers made worse on purpose" in text
    assert "prompts of held-out documents left out" in text
    plain, faint, full = gaps
    assert plain < faint < full
    assert full > 0.05


@pytest.mark.usefixtures("one_thread")
def test_training_learns_from_changed_answers_and_logs_them(augmented, tiny_base, tmp_path):
    run, path = augmented
    config = settings(
        run, tiny_base, tmp_path / "out", method="full", head_init="mean", augment=path, augment_weight=2.0,
        epochs=6, learning_rate=3e-3,
    )  # fmt: skip
    assert order(train(config), run) > 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["contrast"] for line in lines if "contrast" in line]
    assert losses[-1] < losses[0]


def test_held_out_examples_have_no_contrasts_and_another_weight_is_another_run(
    augmented, tiny_base, tmp_path
):
    run, path = augmented
    config = settings(run, tiny_base, tmp_path / "out", augment=path, augment_weight=0.7)
    data = read_data(config)
    assert path in data.sources
    assert any(item.contrasts for item in data.train)
    assert not any(item.contrasts for item in data.held_out)
    assert data.augmented.held_out == len(data.held_out)
    held = {item.document_id for item in data.held_out}
    assert not held & {item.document_id for item in data.train}
    assert make_objective(config, data, [1.0] * 4).contrast_weight == 0.7
    plain = settings(run, tiny_base, tmp_path / "out")
    assert make_objective(plain, read_data(plain), [1.0] * 4).contrast_weight == 0.0


def test_a_file_of_something_else_is_refused(label_run, tiny_base, tmp_path):
    run = label_run()
    config = settings(run, tiny_base, tmp_path / "out", augment=run.parent / "prompts.jsonl")
    with pytest.raises(UserError, match="holds no answer that was changed"):
        read_data(config)
