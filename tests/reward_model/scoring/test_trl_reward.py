"""The reward model inside TRL's own trainer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from judge_pipeline.common.errors import UserError
from reward_model.modeling.head import score_weight
from reward_model.modeling.model import load_backbone_for_rm, save_reward_model
from reward_model.scoring.scorer import RewardModel
from reward_model.scoring.trl_reward import LongContextReward


@pytest.fixture
def model(tiny_base) -> RewardModel:
    backbone = load_backbone_for_rm(str(tiny_base))
    torch.manual_seed(3)
    with torch.no_grad():
        score_weight(backbone.model).normal_(0, 1)
    return RewardModel(backbone)


DOCUMENT = "The bridge was opened in 1932. " * 8


def test_rewards_are_weighted_means_of_the_scores(model):
    reward = LongContextReward(model, weights={"faithfulness": 0.0})
    found = reward(
        prompts=["ignored"] * 4,
        completions=["In 1932.", "  ", "Never.", "In 1932."],
        context=[DOCUMENT, DOCUMENT, DOCUMENT, "Other text."],
        query=["When?"] * 4,
        trainer_state=None,
        completion_ids=[[1]] * 4,
    )
    first = model.score(DOCUMENT, "When?", ["In 1932.", "Never."])
    other = model.score("Other text.", "When?", ["In 1932."])
    expected = [first[0, [0, 1, 3]].mean(), first[1, [0, 1, 3]].mean(), other[0, [0, 1, 3]].mean()]
    np.testing.assert_allclose([found[0], found[2], found[3]], expected, atol=1e-4)
    assert found[1] is None  # nothing to score, which TRL leaves out
    assert math.isnan(reward.last_scores["helpfulness"][1])
    assert reward.last_scores["logicality"][2] == pytest.approx(first[1, 1], abs=1e-4)


def test_a_directory_is_loaded_and_may_be_read_one_by_one(model, tmp_path):
    save_reward_model(model.model, model.tokenizer, tmp_path, model.manifest)
    call = {
        "prompts": ["p"] * 2,
        "completions": ["one", "two"],
        "context": [DOCUMENT] * 2,
        "query": ["?"] * 2,
    }
    alone = LongContextReward(tmp_path, shared_prefix="off")
    np.testing.assert_allclose(alone(**call), LongContextReward(tmp_path)(**call), atol=1e-4)
    assert alone.model.tokens_read > 1.8 * len(model.render(DOCUMENT, "?"))


def test_the_document_is_read_once_for_all_completions(model):
    before = model.tokens_read
    LongContextReward(model)(
        ["p"] * 6, [f"answer {i}" for i in range(6)], context=[DOCUMENT] * 6, query=["?"] * 6
    )
    one_by_one = 6 * len(model.render(DOCUMENT, "?"))
    assert model.tokens_read - before < one_by_one / 3


def test_conversations_and_prompts_without_a_document(model):
    prompts = [[{"role": "user", "content": "What is it?"}]]
    completions = [[{"role": "assistant", "content": "A bridge."}]]
    (found,) = LongContextReward(model)(prompts, completions)
    assert found == pytest.approx(model.score("", "What is it?", ["A bridge."]).mean(), abs=1e-4)


def test_over_the_window(model):
    call = {"prompts": ["p"] * 2, "completions": ["ok", "x" * 2000], "context": ["d"] * 2, "query": ["?"] * 2}
    with pytest.raises(UserError, match="over the reward model's window of 1024"):
        LongContextReward(model)(**call)
    fits, over = LongContextReward(model, overflow="none")(**call)
    assert fits is not None
    assert over is None


def test_a_step_of_grpo(model, tiny_base, tmp_path):
    rows = [{"prompt": f"Question {i}?", "context": DOCUMENT, "query": f"Question {i}?"} for i in range(4)]
    calls = []

    class Recorded(LongContextReward):
        def __call__(self, prompts, completions, **columns):
            rewards = super().__call__(prompts, completions, **columns)
            calls.append((completions, columns["context"], rewards))
            return rewards

    recorded = Recorded(model)
    trainer = GRPOTrainer(
        model=str(tiny_base),
        reward_funcs=[recorded],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            max_steps=1,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
        ),
        processing_class=AutoTokenizer.from_pretrained(tiny_base),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    (completions, contexts, rewards), *_ = calls
    assert len(completions) == 4
    assert set(contexts) == {DOCUMENT}
    logged = next(
        row["rewards/long_context_reward/mean"]
        for row in trainer.state.log_history
        if "rewards/long_context_reward/mean" in row
    )
    given = [value for value in rewards if value is not None]
    assert logged == pytest.approx(np.mean(given), abs=1e-3)
