"""Loss and gradients against TRL's own DPOTrainer, in fp32, on the same pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from dpo_helpers import WORDS, make_model, make_tokenizer
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from dpo.train.shared_forward import pack_pairs, share_prompt
from dpo.train.trainer import SharedPromptDPOTrainer
from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.logps import HeadShape, token_stats


def pairs(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": WORDS[i * 7 : i * 7 + 40 + i * 25]}],
            "chosen": [{"role": "assistant", "content": WORDS[i * 3 : i * 3 + 20 + 13 * i]}],
            "rejected": [{"role": "assistant", "content": WORDS[i * 5 + 3 : i * 5 + 60 - 7 * i]}],
        }
        for i in range(count)
    ]


class Spy:
    """Keeps the gradients of every optimiser step and the losses of every micro-batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def watch(self, base: type) -> type:
        spy = self

        class Watched(base):  # type: ignore[misc, valid-type]
            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                spy.losses.append(loss.item())
                return loss

            def _clip_grad_norm(self, model: Any) -> Any:
                spy.gradients.append(
                    {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                )
                return super()._clip_grad_norm(model)

        return Watched


def train(
    base: type, model_path: Path, folder: Path, lora: bool, args: dict[str, Any], rows: Any = None
) -> Spy:
    spy = Spy()
    config = DPOConfig(
        output_dir=str(folder), loss_weights=None if "loss_type" in args else [1.0, 0.1], beta=0.15, max_length=None,
        learning_rate=1e-3, optim="sgd", report_to=[], use_cpu=True, save_strategy="no", bf16=False, disable_tqdm=True,
        **{"max_steps": 2, "loss_type": ["sigmoid", "sft"], "gradient_checkpointing": False, **args},
    )  # fmt: skip
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    trainer = spy.watch(base)(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows or pairs()),
        processing_class=make_tokenizer(),
        peft_config=adapter,
    )
    trainer.train()
    return spy


def compare(ours: Spy, theirs: Spy) -> None:
    assert len(ours.losses) == len(theirs.losses) > 0
    assert len(ours.gradients) == len(theirs.gradients) > 0
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(theirs.losses), atol=1e-5, rtol=1e-5)
    for mine, stock in zip(ours.gradients, theirs.gradients, strict=True):
        assert mine.keys() == stock.keys()
        for name, gradient in stock.items():
            scale = float(gradient.norm())
            assert float((mine[name] - gradient).norm()) <= 1e-5 * max(scale, 1e-3), name


BOTH = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}
CASES = {
    "sigmoid": (False, {"loss_type": ["sigmoid"], "per_device_train_batch_size": 2}),
    "sigmoid+sft": (False, {"per_device_train_batch_size": 2}),
    "precomputed": (False, {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True}),
    "accumulated": (False, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}),
    "checkpointed": (False, {"per_device_train_batch_size": 2, "gradient_checkpointing": True}),
    "lora": (True, {"per_device_train_batch_size": 2}),
    "lora precomputed": (True, {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True}),
    "lora checkpointed accumulated": (
        True,
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    ),
    "ipo": (False, {"loss_type": ["ipo"], "per_device_train_batch_size": 2}),
    "ld-dpo, weighted": (
        False, {"loss_type": ["sigmoid"], "ld_alpha": 0.4, "use_weighting": True, "per_device_train_batch_size": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_trls(case: str, tiny_model: Path, tmp_path: Path):
    lora, args = CASES[case]
    theirs = train(DPOTrainer, tiny_model, tmp_path / "trl", lora, args)
    ours = train(SharedPromptDPOTrainer, tiny_model, tmp_path / "ours", lora, args)
    compare(ours, theirs)


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "router_aux_loss_coef": 0.3,
}
ARCHITECTURES = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 12, "head_dim": 16},
    "phi3": {"pad_token_id": 0},
    "gemma2": {
        "head_dim": 16,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": None,
        "sliding_window": 12,
    },
    "gemma3_text": {"head_dim": 16, "sliding_window": 12},
    "qwen3_moe": {"head_dim": 16, **EXPERTS, "decoder_sparse_step": 1},
    "mixtral": {"num_local_experts": 4, **EXPERTS},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.25},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures(kind: str, tmp_path: Path):
    config = AutoConfig.for_model(
        kind, vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **ARCHITECTURES[kind]},
    )  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    args = {"per_device_train_batch_size": 2, "max_steps": 1}
    theirs = train(DPOTrainer, tmp_path / "model", tmp_path / "trl", False, args)
    ours = train(SharedPromptDPOTrainer, tmp_path / "model", tmp_path / "ours", False, args)
    compare(ours, theirs)


def test_tiles_give_the_same_as_one_and_as_torch():
    torch.manual_seed(0)
    hidden, weight = torch.randn(13, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    targets = torch.randint(0, 40, (13,))
    for shape in (HeadShape(), HeadShape(scale=0.5, softcap=2.0)):
        logits = hidden @ weight.T * shape.scale
        logits = logits if shape.softcap is None else shape.softcap * torch.tanh(logits / shape.softcap)
        log_softmax = torch.log_softmax(logits, -1)
        expected = log_softmax.gather(1, targets[:, None])[:, 0]
        wanted = torch.autograd.grad(expected.sin().sum(), [hidden, weight])
        for tile in (1, 4, 13, 100):
            stats = token_stats(hidden, weight, None, targets, shape, tile)
            torch.testing.assert_close(stats.log_probs, expected)
            torch.testing.assert_close(
                stats.entropy, torch.distributions.Categorical(logits=logits).entropy()
            )
            torch.testing.assert_close(stats.log_sum_sq_probs, torch.logsumexp(2 * log_softmax, -1))
            got = torch.autograd.grad(stats.log_probs.sin().sum(), [hidden, weight])
            torch.testing.assert_close(got, wanted)


def test_every_answer_token_finds_its_place():
    prompt, chosen, rejected = [3, 4, 5], [6, 7], [8, 9, 10, 11]
    rows = [prompt + chosen + [0, 0], prompt + rejected]
    ids = torch.tensor(rows)
    mask = torch.tensor([[1] * 5 + [0] * 2, [1] * 7])
    labels = ids.masked_fill(torch.tensor([[1] * 3 + [0] * 2 + [1] * 2, [1] * 3 + [0] * 4]).bool(), -100)
    packed = pack_pairs(ids, mask, labels)
    assert packed.input_ids.tolist() == [prompt + chosen + rejected]
    values = packed.unpack(packed.input_ids[0, packed.layout.completion_target_index()].float())
    assert values.tolist() == [[0, 0, 6, 7, 0, 0], [0, 0, 8, 9, 10, 11]]


def test_a_batch_whose_prompts_differ_or_that_was_cut_is_refused():
    ids = torch.tensor([[3, 4, 5], [3, 6, 7]])
    labels = torch.tensor([[-100, -100, 5], [-100, -100, 7]])
    with pytest.raises(ValueError, match="different prompts"):
        pack_pairs(ids, torch.ones_like(ids), labels)
    with pytest.raises(ValueError, match="truncated"):
        pack_pairs(ids[:1].expand(2, -1), torch.ones_like(ids), torch.full_like(ids, -100))


def test_models_that_cannot_share_are_refused_by_name():
    from transformers import BloomConfig

    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="Bloom"):
        share_prompt(model)


def test_generation_is_untouched_by_sharing():
    from trl.trainer.utils import add_fused_lm_head

    model = make_model().eval()
    ids = torch.randint(3, 400, (2, 9))
    before = model(ids).logits
    generated = model.generate(ids, max_new_tokens=5, do_sample=False)
    add_fused_lm_head(model)
    share_prompt(model)
    torch.testing.assert_close(model(ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), generated)
