"""Log-probabilities of answer tokens from hidden states, in tiles: the full logits never exist.

A 64k-token pair over a 150k vocabulary is 68 GB of fp32 logits; what is needed of it is one number an answer
token. Hidden states at answer positions go through the LM head a tile at a time; in training a tile's logits are
dropped and computed again in the backward pass, so memory is one tile whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

TILE_ELEMENTS = 2**25
"""Logits a tile may hold: 128 MB in fp32."""


@dataclass(frozen=True)
class HeadShape:
    """What a model does to its logits after the LM head (Gemma caps, Cohere and Granite scale)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> HeadShape:
        """Read from a model's text configuration; the same fields as TRL's fused head reads."""
        names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
        given = (getattr(config, name, None) for name in names)
        scale = next((value for value in given if value is not None), None)
        dividing = getattr(config, "logits_scaling", None)
        if scale is None and dividing is not None:
            scale = dividing if config.model_type == "hyperclovax" else 1 / dividing
        return cls(1.0 if scale is None else float(scale), getattr(config, "final_logit_softcapping", None))


class TokenStats(NamedTuple):
    """Per answer token, all `(C,)`; only `log_probs` and `entropy` carry gradients, as in TRL."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    log_sum_sq_probs: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def _tile(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    shape: HeadShape,
) -> tuple[torch.Tensor, ...]:
    logits = F.linear(hidden, weight, bias).float() * shape.scale
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    log_total = torch.logsumexp(logits, dim=-1)
    log_probs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_total
    entropy = log_total - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    with torch.no_grad():
        log_sum_sq = torch.logsumexp(2 * logits, dim=-1) - 2 * log_total
        mean_logits = logits.mean(dim=-1)
        is_top1 = logits.argmax(dim=-1) == targets
    return log_probs, entropy, log_sum_sq, mean_logits, is_top1


def token_stats(
    hidden_C_H: torch.Tensor,
    weight_V_H: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_C: torch.Tensor,
    shape: HeadShape | None = None,
    tile: int | None = None,
) -> TokenStats:
    """Log-probability and statistics of each target under the LM head.

    Args:
        hidden_C_H: final hidden states at the positions that predict.
        weight_V_H, bias_V: of the LM head.
        targets_C: int64 tokens predicted.
        shape: scaling and cap of the logits.
        tile: positions a tile; by default as many as keep a tile's logits at `TILE_ELEMENTS`.
    """
    shape = shape or HeadShape()
    tile = tile or max(1, TILE_ELEMENTS // weight_V_H.shape[0])
    needs_grad = torch.is_grad_enabled() and (hidden_C_H.requires_grad or weight_V_H.requires_grad)
    pieces = []
    for hidden, targets in zip(hidden_C_H.split(tile), targets_C.split(tile), strict=True):
        arguments = (hidden, weight_V_H, bias_V, targets, shape)
        pieces.append(checkpoint(_tile, *arguments, use_reentrant=False) if needs_grad else _tile(*arguments))
    return TokenStats(*(torch.cat(column) for column in zip(*pieces, strict=True)))
