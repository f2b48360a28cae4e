"""Decoding many answers over one copy of the prompt's keys and values.

In: the cache of one prefill of the prompt. Out: an attention function for the decoding steps, where all answers
read the same prefix and each its own tokens. One matrix product serves every answer's queries against the prefix,
so a step reads the prefix once instead of once an answer, and ten answers to 64k tokens need no tenfold cache.
Exact: one softmax over `[prefix | own]`. Models this cannot serve (sliding windows, soft caps, attention sinks,
layers outside transformers' attention interface) are named by `why_not` and decode over an expanded cache.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

NAME = "longreward_shared_decode"

_prefixes: list[SharedPrefix] = []
"""The prefix in use; a stack, because attention functions are looked up by name and get no state of ours."""


class SharedPrefix:
    """Keys and values of the prompt, one copy a layer: `(1, Hkv, P, D)`."""

    def __init__(self, cache: DynamicCache) -> None:
        self.layers = [(layer.keys, layer.values) for layer in cache.layers]
        self.length = int(cache.get_seq_length())
        self.served = 0


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token an answer over the shared prefix and the answer's own tokens.

    Args:
        module: the attention layer; its `layer_idx` picks the prefix.
        query: `(N, Hq, 1, D)`.
        key, value: `(N, Hkv, T, D)`, the answers' own tokens so far.
        attention_mask: unused; every answer sees all of its own tokens.
        scaling: softmax scale, `1/√D` when None.
        dropout: unused; nothing is trained here.

    Returns:
        `(N, 1, Hq, D)` and None in place of weights.

    Raises:
        RuntimeError: the layer asks for something this function does not compute.
    """
    for name in ("sliding_window", "softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise RuntimeError(f"shared decoding does not compute {name}; `why_not` should have refused")
    prefix = _prefixes[-1]
    prefix.served += 1
    prefix_k, prefix_v = prefix.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    answers, q_heads, _, width = query.shape
    kv_heads = key.shape[1]
    group = q_heads // kv_heads
    scale = scaling if scaling is not None else 1 / math.sqrt(width)
    q_NKGD = (query * scale).view(answers, kv_heads, group, width)
    # All answers' queries side by side: one product a key head over the single copy of the prefix.
    q_K_NG_D = q_NKGD.transpose(0, 1).reshape(kv_heads, answers * group, width)
    prefix_scores = torch.matmul(q_K_NG_D, prefix_k[0].transpose(1, 2))
    prefix_scores = prefix_scores.view(kv_heads, answers, group, -1).transpose(0, 1)
    own_scores = torch.matmul(q_NKGD, key.transpose(2, 3))
    scores = torch.cat([prefix_scores, own_scores], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    on_prefix, on_own = weights.split([prefix.length, key.shape[2]], dim=-1)
    on_prefix = on_prefix.transpose(0, 1).reshape(kv_heads, answers * group, prefix.length)
    out = torch.matmul(on_prefix, prefix_v[0]).view(kv_heads, answers, group, width).transpose(0, 1)
    out = out + torch.matmul(on_own, value)
    return out.reshape(answers, 1, q_heads, width), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, _no_mask)


def why_not(model: PreTrainedModel) -> str | None:
    """Why `model` cannot decode over a shared prefix; None when it can."""
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' attention interface"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        return "some of its layers are not full attention"
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
        return "it uses a sliding window"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps attention scores"
    return None


@contextlib.contextmanager
def decoding(model: PreTrainedModel, prefix: SharedPrefix) -> Iterator[None]:
    """Within the block, `model` decodes over `prefix`; give it an empty cache and absolute positions.

    Raises:
        RuntimeError: on leaving, when a layer did not ask the attention function (its numbers would be wrong).
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    _prefixes.append(prefix)
    try:
        yield
    finally:
        _prefixes.pop()
        config._attn_implementation = before
    if prefix.served % len(prefix.layers) or not prefix.served:
        raise RuntimeError("a layer of the model did not use the attention interface: decoding was not exact")
