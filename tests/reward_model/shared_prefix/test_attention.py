"""Shared-prefix numbers against independent forwards of `[prefix, answer]` in eager attention, seven families."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    Glm4Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from judge_pipeline.common.errors import UserError
from reward_model.modeling.head import apply_head
from reward_model.shared_prefix.chunked import chunked_hidden
from reward_model.shared_prefix.interface import enable_shared_prefix, shared_forward, shared_prefix
from reward_model.shared_prefix.layout import Layout, join_ids

VOCABULARY = 97
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_labels": 4,
    "pad_token_id": 0,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(**TINY),
    "qwen2": Qwen2Config(**TINY),
    "qwen2_sliding": Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=9, max_window_layers=1, layer_types=MIXED
    ),
    "qwen3": Qwen3Config(**TINY, head_dim=16),
    "mistral_sliding": MistralConfig(**TINY, sliding_window=11),
    "glm4": Glm4Config(**TINY, head_dim=8),
    "phi3": Phi3Config(**TINY, sliding_window=None),
    "gemma3": Gemma3TextConfig(
        **{**TINY, "num_attention_heads": 4}, head_dim=16, sliding_window=7, layer_types=MIXED
    ),
}
PACKED = [(23, (5, 9, 1, 12)), (6, (3,)), (17, (30, 2))]
Prompts = list[tuple[list[int], list[list[int]]]]


def random_prompts(shapes: list[tuple[int, tuple[int, ...]]], seed: int = 1) -> Prompts:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [(draw(prefix), [draw(length) for length in answers]) for prefix, answers in shapes]


def build(family: str, seed: int = 0, scale: float = 3.0) -> tuple[Any, Any]:
    """A tiny model prepared for sharing and an eager copy; weights scaled up so attention is far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(FAMILIES[family]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(scale)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    return enable_shared_prefix(model), reference


def one_by_one(model: Any, prompts: Prompts) -> torch.Tensor:
    return torch.cat(
        [model(input_ids=torch.tensor([prefix + a])).logits for prefix, answers in prompts for a in answers]
    )


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    loss.backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["cpu_flash", "sdpa"])
def test_scores_and_gradients_equal_independent_forwards(family: str, backend: str) -> None:
    model, reference = build(family)
    enable_shared_prefix(model, backend)
    prompts = random_prompts(PACKED)
    input_ids, layout = join_ids(prompts)
    weights = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    shared = model(input_ids=input_ids, layout=layout).logits
    expected = one_by_one(reference, prompts)
    assert shared.shape == (7, 4)
    assert expected.std() > 0.05  # else agreement would prove little
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (
        gradients(model, (shared * weights).sum()),
        gradients(reference, (expected * weights).sum()),
    )
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_see_each_other(family: str) -> None:
    """Changing one answer changes no other score, bit for bit."""
    model, _ = build(family)
    prompts = random_prompts([(19, (6, 8, 5))])
    changed = [(prompts[0][0], [prompts[0][1][0], prompts[0][1][1][::-1], prompts[0][1][2]])]
    scores = []
    for variant in (prompts, changed):
        ids, layout = join_ids(variant)
        scores.append(model(input_ids=ids, layout=layout).logits)
    assert torch.equal(scores[0][[0, 2]], scores[1][[0, 2]])
    assert not torch.equal(scores[0][1], scores[1][1])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_gradient_checkpointing_recomputes_under_the_same_layout(family: str, reentrant: bool) -> None:
    model, reference = build(family)
    prompts = random_prompts(PACKED)
    input_ids, layout = join_ids(prompts)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    shared = model(input_ids=input_ids, layout=layout).logits
    # The context has ended, and another layout is active when the layers are recomputed.
    with pytest.raises(UserError, match="only 0 of"), shared_prefix(Layout.of(3, [2])):
        ours = gradients(model, shared.square().sum())
    theirs = gradients(reference, one_by_one(reference, prompts).square().sum())
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_lora_gradients(family: str) -> None:
    model, reference = build(family)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    torch.manual_seed(3)
    model = get_peft_model(model, config)
    torch.manual_seed(3)
    reference = get_peft_model(reference, config)
    reference.load_state_dict(model.state_dict())
    model.eval(), reference.eval()
    prompts = random_prompts(PACKED)
    input_ids, layout = join_ids(prompts)
    shared = model(input_ids=input_ids, layout=layout).logits
    expected = one_by_one(reference, prompts)
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=1e-5)
    assert (
        relative(gradients(model, shared.square().sum()), gradients(reference, expected.square().sum()))
        < 1e-5
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bf16_is_as_close_to_fp32_as_independent_bf16_is(family: str) -> None:
    model, reference = build(family, scale=1.0)
    prompts = random_prompts(PACKED)
    input_ids, layout = join_ids(prompts)
    exact = one_by_one(reference, prompts)
    alone = one_by_one(reference.to(torch.bfloat16), prompts)
    shared = model.to(torch.bfloat16)(input_ids=input_ids, layout=layout).logits
    noise = relative(alone, exact)
    assert 1e-4 < noise < 0.05
    assert relative(shared, exact) < max(2 * noise, 0.01)


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_prefix_is_exact(family: str, chunk: int) -> None:
    model, reference = build(family)
    [(prefix, answers)] = random_prompts([(41, (5, 9, 1, 12))])
    hidden = chunked_hidden(model, prefix, answers, chunk)
    torch.testing.assert_close(
        apply_head(model, hidden), one_by_one(reference, [(prefix, answers)]), atol=1e-5, rtol=1e-5
    )


def test_chunked_prefix_refuses_training_mode() -> None:
    model, _ = build("llama")
    with pytest.raises(ValueError, match="eval"):
        chunked_hidden(model.train(), [3, 4, 5], [[6]], 2)


@pytest.mark.parametrize("family", ["llama", "gemma3", "glm4"])
def test_causal_lm_log_probabilities(family: str) -> None:
    """What DPO does: `logits_to_keep` at the layout's completion indices."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    enable_shared_prefix(model)
    prompts = random_prompts([(23, (5, 9)), (4, (1, 3))])
    input_ids, layout = join_ids(prompts)
    with shared_prefix(layout):
        logits = model(
            input_ids=input_ids,
            position_ids=layout.position_ids(),
            use_cache=False,
            logits_to_keep=layout.completion_logit_index(),
        ).logits[0]
    targets = input_ids[0, layout.completion_target_index()]
    token_log_probs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    ours = torch.zeros(4).index_add(0, layout.completion_answer(), token_log_probs)
    theirs = []
    for prefix, answers in prompts:
        for answer in answers:
            ids = torch.tensor([prefix + answer])
            full = reference(input_ids=ids).logits[0, len(prefix) - 1 : -1].log_softmax(-1)
            theirs.append(full.gather(1, torch.tensor(answer)[:, None]).sum())
    torch.testing.assert_close(ours, torch.stack(theirs), atol=1e-4, rtol=1e-5)


def test_outside_a_layout_the_model_is_ordinary() -> None:
    """Padded batches and generation run SDPA as before."""
    model, reference = build("gemma3")
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
    mask = (ids != 0).long()
    torch.testing.assert_close(
        model(ids, attention_mask=mask).logits, reference(ids, attention_mask=mask).logits
    )


def test_a_copy_of_the_model_is_a_model_of_its_own() -> None:
    """Reference models are made by deepcopy: the copy's forward must not run the original."""
    model, _ = build("llama")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.score.weight.zero_()
    input_ids, layout = join_ids(random_prompts([(5, (2, 3))]))
    assert model(input_ids=input_ids, layout=layout).logits.abs().min() > 0
    assert twin(input_ids=input_ids, layout=layout).logits.abs().max() == 0


def test_wrong_positions_are_refused() -> None:
    model, _ = build("llama")
    input_ids, layout = join_ids(random_prompts([(5, (2, 3))]))
    with pytest.raises(ValueError, match="position_ids"), shared_prefix(layout):
        model(input_ids=input_ids)


def test_a_layout_of_another_length_is_refused() -> None:
    model, _ = build("llama")
    with pytest.raises(ValueError, match="layout has 9 queries"), shared_prefix(Layout.of(5, [4])):
        model.model(input_ids=torch.ones(1, 8, dtype=torch.long), position_ids=torch.arange(8)[None] * 0)
    with pytest.raises(ValueError, match="batch of 2"), shared_prefix(Layout.of(5, [4])):
        model(input_ids=torch.ones(2, 9, dtype=torch.long))


def test_attention_dropout_is_refused() -> None:
    config = copy.deepcopy(FAMILIES["llama"])
    config.attention_dropout = 0.1
    model = enable_shared_prefix(AutoModelForSequenceClassification.from_config(config)).train()
    input_ids, layout = join_ids(random_prompts([(5, (2,))]))
    with pytest.raises(UserError, match="dropout"):
        shared_forward(model, input_ids, layout)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_longest_sequence(rope_type: str) -> None:
    config = copy.deepcopy(FAMILIES["phi3" if rope_type == "longrope" else "llama"])
    config.max_position_embeddings = 32
    parameters: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 10000.0}
    if rope_type == "dynamic":
        parameters["factor"] = 2.0
    else:
        config.max_position_embeddings = 64
        parameters |= {
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 32,
        }
        config.original_max_position_embeddings = 32
    config.rope_parameters = parameters
    torch.manual_seed(0)
    model = enable_shared_prefix(AutoModelForSequenceClassification.from_config(config).eval())
    prompts = random_prompts([(20, (5, 9))])
    input_ids, layout = join_ids(prompts)
    torch.testing.assert_close(
        model(input_ids=input_ids, layout=layout).logits, one_by_one(model, prompts), atol=1e-5, rtol=1e-5
    )
    input_ids, layout = join_ids(random_prompts([(28, (2, 9))]))
    with pytest.raises(UserError, match=rope_type):
        shared_forward(model, input_ids, layout)
    [(prefix, answers)] = random_prompts([(28, (9,))])
    with pytest.raises(UserError, match=rope_type):
        chunked_hidden(model, prefix, answers, chunk=10)


def test_layouts_of_two_threads_do_not_mix() -> None:
    model, reference = build("llama")
    batches = [random_prompts(PACKED, seed) for seed in range(4)]
    expected = [one_by_one(reference, prompts) for prompts in batches]
    results: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(5):
            ids, layout = join_ids(batches[i])
            results[i] = model(input_ids=ids, layout=layout).logits.detach()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for i in range(4):
        torch.testing.assert_close(results[i], expected[i], atol=1e-5, rtol=1e-5)
