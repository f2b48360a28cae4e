"""Which models a shared prefix is exact for, and the proof on the loaded model.

``check_supported`` reads the configuration and says why a model cannot share a prefix. ``verify_exact`` then runs
a few random tokens both ways: whatever the configuration did not tell shows there. Both raise ``UserError``; the
caller may choose to score one by one instead, and nothing falls back silently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.chunked import chunked_hidden
from reward_model.shared_prefix.interface import (
    ONE_BY_ONE,
    enable_shared_prefix,
    hidden_one_by_one,
    shared_forward,
    unwrap,
)
from reward_model.shared_prefix.layout import join_ids

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest accepted ‖shared − alone‖ / ‖alone‖ of hidden states, by type. A leak between answers is of order 1."""

_TEST_WINDOW = 16
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def check_supported(model: nn.Module) -> None:
    """Refuse what cannot be exact.

    Raises:
        UserError: names the reason.
    """
    inner = unwrap(model)
    config: Any = inner.config.get_text_config()
    name = type(inner).__name__

    def refuse(reason: str) -> None:
        raise UserError(f"{name} cannot share a prefix: {reason}", hint=ONE_BY_ONE)

    if inner.config.is_encoder_decoder:
        refuse("it has an encoder")
    other = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    if other:
        refuse(f"its {', '.join(sorted(other))} layers are not attention over a window or everything")
    if getattr(inner, "_is_stateful", False):
        refuse("it carries a recurrent state, which would pass from one answer to the next")
    if not inner._can_set_attn_implementation():
        refuse("it does not use transformers' attention interface")
    if getattr(config, "attn_logit_softcapping", None):
        refuse("its attention scores have a soft cap")
    if any(key.rsplit(".", 1)[-1] == "sinks" for key, _ in inner.named_parameters()):
        refuse("it has attention sinks")
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        refuse("its attention is not causal")
    if getattr(config, "attention_chunk_size", None):
        refuse("its attention works in chunks of fixed size")
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "rope") == "alibi":
        refuse("ALiBi depends on distances in the sequence")


@torch.no_grad()
def verify_exact(model: nn.Module, prefix: int = 48, chunked: bool = False) -> float:
    """Compare a shared forward with independent ones on random tokens.

    Args:
        model: prepared by ``enable_shared_prefix``; its mode is kept.
        prefix: length of the random prefix.
        chunked: check the chunked prefix as well.

    Returns:
        ‖shared − alone‖ / ‖alone‖ over the answers' last hidden states.

    Raises:
        UserError: the two differ by more than ``TOLERANCE``.
    """
    inner = unwrap(model)
    device, dtype = inner.device, inner.dtype
    generator = torch.Generator().manual_seed(7)
    vocabulary = inner.config.get_text_config().vocab_size

    def draw(length: int) -> list[int]:
        return torch.randint(0, vocabulary, (length,), generator=generator).tolist()

    prompts = [(draw(prefix), [draw(7), draw(1), draw(12)]), (draw(5), [draw(4)])]
    was_training = model.training
    model.eval()
    config = inner.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is not None and window > _TEST_WINDOW:
        # Masks read the window at every call: a small one lets few tokens show how windows are kept.
        config.sliding_window = _TEST_WINDOW
    try:
        input_ids, layout = join_ids(prompts, device)
        shared = shared_forward(model, input_ids, layout)[layout.score_index(device)]
        alone = torch.cat([hidden_one_by_one(model, ids, answers) for ids, answers in prompts])
        error = _distance(shared, alone)
        if chunked:
            pieces = [chunked_hidden(model, ids, answers, chunk=17) for ids, answers in prompts]
            error = max(error, _distance(torch.cat(pieces), alone))
    finally:
        if window is not None:
            config.sliding_window = window
        model.train(was_training)
    if not error < TOLERANCE[dtype]:
        raise UserError(
            f"{type(inner).__name__} gives other numbers in a shared sequence than alone "
            f"(relative difference {error:.1e}, at most {TOLERANCE[dtype]:.0e} is rounding)",
            hint=ONE_BY_ONE,
        )
    return error


def _distance(shared: torch.Tensor, alone: torch.Tensor) -> float:
    return float((shared.double() - alone.double()).norm() / alone.double().norm())


def prepare_shared_prefix(model: nn.Module, backend: str | None = None, chunked: bool = False) -> nn.Module:
    """Check, enable and verify: what every command does after loading a model.

    Raises:
        UserError: the model cannot share a prefix exactly.
    """
    check_supported(model)
    enable_shared_prefix(model, backend)
    verify_exact(model, chunked=chunked)
    return model
