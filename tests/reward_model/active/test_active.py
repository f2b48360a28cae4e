"""Active choice: against NumPy, in a world where it is known which prompts are uncertain, and through the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from judge_pipeline.common.config import main
from judge_pipeline.common.record_files import read_prompts, write_records
from reward_model.active.choice import (
    Labelled,
    choose,
    disagreement,
    fit_ensemble,
    predict_ensemble,
    rank_prompts,
)
from reward_model.cli import COMMANDS
from reward_model.modeling.model import load_backbone_for_rm, save_reward_model
from reward_model.modeling.ridge import fit_answers
from reward_model.scoring.scorer import RewardModel


def head(features, target, strength):
    """A function from features to the points of one probe."""
    probe = fit_answers(torch.from_numpy(features), torch.from_numpy(target)[:, None], strength)
    return lambda rows: probe(torch.from_numpy(rows))[:, 0].numpy()


def test_disagreement_ignores_what_all_answers_share():
    spread = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    assert disagreement(spread) == 0.0
    turned = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert disagreement(turned) == pytest.approx(np.sqrt(0.5))


def test_a_head_ignores_missing_targets():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 5))
    target = features @ np.array([3.0, 0, 0, 0, 1.0]) + 4
    gaps = target.copy()
    gaps[::3] = np.nan
    predicted = head(features, gaps, 1e-6)(features)
    assert np.allclose(predicted, target, atol=1e-6)


def world(rng: np.random.Generator, prompts: int, kind: int) -> list[np.ndarray]:
    """Answers whose differences lie along one of two directions; the labels only know direction 0."""
    found = []
    for _ in range(prompts):
        features = np.zeros((4, 12))
        features[:, 6 * kind : 6 * kind + 6] = rng.normal(size=(4, 6))
        found.append(features)
    return found


def test_prompts_unlike_the_labelled_ones_are_more_uncertain_and_chosen():
    rng = np.random.default_rng(1)
    known = world(rng, 60, 0) + world(rng, 4, 1)
    truth = rng.normal(size=12)
    features = np.concatenate(known)
    targets = (features @ truth)[:, None] + rng.normal(0, 0.3, (len(features), 1))
    documents = [f"d{i // 4}" for i in range(len(features))]
    pool = world(rng, 10, 0) + world(rng, 10, 1)
    uncertainty = rank_prompts(Labelled(features, targets, documents), pool, heads=24)
    chosen = choose(uncertainty, [f"x{i}" for i in range(20)], 10)
    assert sum(position >= 10 for position in chosen) >= 9


def test_active_choice_beats_random_choice_where_the_pool_is_mostly_known():
    """A pool with few prompts of an unknown kind: choosing finds them, chance mostly does not."""
    rng = np.random.default_rng(2)
    truth = rng.normal(size=12)

    def targets(features: np.ndarray) -> np.ndarray:
        return (features @ truth)[:, None] + rng.normal(0, 0.3, (len(features), 1))

    start, pool, test = (
        world(rng, 30, 0) + world(rng, 2, 1),
        world(rng, 90, 0) + world(rng, 10, 1),
        world(rng, 40, 1),
    )

    def error(extra: list[int]) -> float:
        features = np.concatenate([*start, *(pool[i] for i in extra)])
        learnt = head(features, targets(features)[:, 0], 1.0)
        rows = np.concatenate(test)
        return float(np.mean((learnt(rows) - rows @ truth) ** 2))

    features = np.concatenate(start)
    labelled = Labelled(features, targets(features), [f"d{i // 4}" for i in range(len(features))])
    uncertainty = rank_prompts(labelled, pool)
    active = error(choose(uncertainty, [f"x{i}" for i in range(100)], 10))
    random = np.mean([error(rng.choice(100, 10, replace=False).tolist()) for _ in range(10)])
    assert active < 0.7 * random


def test_choice_spreads_over_documents():
    uncertainty = np.array([9.0, 8.0, 7.0, 1.0, 0.5])
    documents = ["a", "a", "a", "b", "c"]
    assert choose(uncertainty, documents, 3) == [0, 3, 4]
    assert choose(uncertainty, documents, 3, per_document=2) == [0, 1, 3]
    assert choose(uncertainty, documents, 9, per_document=9) == [0, 1, 2, 3, 4]


def test_the_ensemble_resamples_documents_and_is_repeatable():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(40, 3))
    labelled = Labelled(features, features[:, :2], [f"d{i // 4}" for i in range(40)])
    one, two = (predict_ensemble(fit_ensemble(labelled, 5, seed=4), features) for _ in range(2))
    assert one.shape == (5, 40)
    assert np.array_equal(one, two)
    assert np.ptp(one, axis=0).max() > 0
    with pytest.raises(ValueError, match="differ in length"):
        Labelled(features, features[:5], ["d"] * 40)


def test_the_command_writes_prompts_ready_to_label(label_run, tiny_base, tmp_path, capsys):
    tiny_model = tmp_path / "rm"
    backbone = load_backbone_for_rm(str(tiny_base))
    save_reward_model(backbone.model, backbone.tokenizer, tiny_model, backbone.manifest)
    pool = [
        {
            "id": f"new{i}",
            "document_id": f"n{i // 2}",
            "context": f"Tower {i} is {i + 20} metres high. " * 5,
            "query": "How high is it?",
            "responses": [{"id": str(k), "text": f"{i + 20 + k} metres."} for k in range(3)],
        }
        for i in range(8)
    ]
    write_records(tmp_path / "pool.jsonl", pool)
    output = tmp_path / "next.jsonl"
    words = [
        "propose",
        tiny_model,
        label_run(count=6),
        tmp_path / "pool.jsonl",
        "--output",
        output,
        "--count",
        "3",
    ]
    assert main("reward-model", COMMANDS, [str(word) for word in words]) == 0
    chosen = list(read_prompts(output, need_responses=True))
    ranking = json.loads((tmp_path / "next.uncertainty.json").read_text())
    assert len(chosen) == 3
    assert len({prompt.document_id for prompt in chosen}) == 3
    assert chosen[0].id == ranking[0]["prompt_id"]
    assert len(ranking) == 8
    assert "judge-pipeline label" in capsys.readouterr().out
    # Over the window: an error that says how many, or left out and counted.
    pool[3]["context"] *= 40
    write_records(tmp_path / "pool.jsonl", pool)
    again = [str(word) for word in words] + ["--existing", "replace"]
    assert main("reward-model", COMMANDS, again) == 2
    assert "1 of 8 unlabelled prompts are longer than the model's window" in capsys.readouterr().err
    assert main("reward-model", COMMANDS, [*again, "--overflow", "skip", "--shared-prefix", "off"]) == 0
    assert "1 of 8 unlabelled prompts" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "next.uncertainty.json").read_text())) == 7
    # The features are what the model's own head sees: its head on them gives its scores.
    model = RewardModel.from_pretrained(tiny_model)
    texts = [item["text"] for item in pool[0]["responses"]]
    features = model.features([model.encode(pool[0]["context"], pool[0]["query"], texts)])[:, 0].numpy()
    weight = model.model.score.weight.detach().float().numpy()
    assert np.allclose(
        features @ weight.T, model.score(pool[0]["context"], pool[0]["query"], texts), atol=1e-4
    )
