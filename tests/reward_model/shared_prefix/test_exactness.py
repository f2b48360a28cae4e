"""What cannot share a prefix is refused with its reason; what leaks is caught on the loaded model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3NextConfig,
    T5Config,
)

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.exactness import check_supported, prepare_shared_prefix, verify_exact
from reward_model.shared_prefix.interface import enable_shared_prefix, shared_forward
from reward_model.shared_prefix.layout import join_ids
from reward_model.shared_prefix.plan import AttentionPlan

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(LlamaConfig(**{**SMALL, **changes})).eval()


REFUSED = {
    "mamba": (
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
        "linear_attention|recurrent",
    ),
    "hybrid": (Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), "conv"),
    "linear": (
        Qwen3NextConfig(**SMALL, layer_types=["linear_attention", "full_attention"]),
        "linear_attention",
    ),
    "falcon_h1": (
        FalconH1Config(**SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_state=8),
        "recurrent|layers",
    ),
    "soft cap": (Gemma2Config(**SMALL, head_dim=8), "soft cap"),
    "sinks": (GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1), "sinks"),
    "encoder-decoder": (
        T5Config(vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8),
        "encoder",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_with_the_reason(name: str) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as caught:
        check_supported(AutoModel.from_config(config))
    assert "--shared-prefix off" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        BertConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        ),
    ],
    ids=["bloom", "bert"],
)
def test_models_that_mask_or_bias_in_their_own_way_never_pass(config: Any) -> None:
    with pytest.raises((UserError, ValueError)):
        prepare_shared_prefix(AutoModel.from_config(config).eval())


def test_learned_absolute_positions_are_exact() -> None:
    """GPT-2 gets the layout's positions; nothing about it needs RoPE."""
    config = GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
    )
    model = prepare_shared_prefix(AutoModelForCausalLM.from_config(config).eval())
    assert verify_exact(model) < 1e-5


def test_a_supported_model_verifies_and_keeps_its_mode() -> None:
    model = prepare_shared_prefix(llama().train(), chunked=True)
    assert model.training
    assert verify_exact(model, chunked=True) < 1e-6


def test_windows_are_verified_though_the_document_would_have_to_be_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A back end that ignored the window would pass a test shorter than the window: it is narrowed meanwhile."""
    torch.manual_seed(0)
    config = MistralConfig(**SMALL, sliding_window=4096)
    model = enable_shared_prefix(AutoModelForSequenceClassification.from_config(config).eval())
    assert verify_exact(model, chunked=True) < 1e-6
    assert model.config.sliding_window == 4096
    monkeypatch.setattr(AttentionPlan, "with_window", lambda self, window: self)
    with pytest.raises(UserError, match="other numbers"):
        verify_exact(model)
    assert model.config.sliding_window == 4096


def test_a_leak_the_configuration_does_not_tell_is_caught() -> None:
    """A convolution over tokens slipped into a block passes every static check and the interface."""
    model = llama()
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x + x.roll(1, dims=1))
    check_supported(model)
    enable_shared_prefix(model)
    with pytest.raises(UserError, match="other numbers in a shared sequence"):
        verify_exact(model)


def test_a_leak_in_bf16_is_told_from_rounding() -> None:
    model = llama(num_hidden_layers=4).to(torch.bfloat16)
    assert verify_exact(enable_shared_prefix(model)) < 0.03
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x + 4 * x.roll(1, dims=1))
    with torch.no_grad():
        mlp.down_proj.weight.mul_(20)
    with pytest.raises(UserError, match="other numbers"):
        verify_exact(model)


def test_a_layer_beside_the_interface_is_caught_at_the_first_pass() -> None:
    model = llama()
    attention = model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    enable_shared_prefix(model)
    input_ids, layout = join_ids([([3, 4, 5], [[6, 7], [8]])])
    with pytest.raises(UserError, match="only 1 of the model's 2 layers"):
        shared_forward(model, input_ids, layout)
