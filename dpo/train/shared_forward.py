"""TRL's fused forward, with the prompt of each pair encoded once.

TRL's `DPOTrainer` calls `model(input_ids, attention_mask, labels, fused_lm_head=True)` on `[chosen… | rejected…]`
and reads per-token log-probabilities back. `share_prompt` answers that very call: each pair becomes
`[prompt | chosen | rejected]` in one packed sequence (see `reward_model.shared_prefix.layout`), p + 2r tokens for 2(p + r), and
the results are put where TRL expects them. Loss, reference, PEFT, metrics and every loss type stay TRL's own.

Only answer positions go through the LM head (see `reward_model.shared_prefix.logps`). Models a shared prefix is not exact for are refused by
`reward_model.shared_prefix.exactness` before training; nothing falls back silently.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils import ModelOutput

from reward_model.shared_prefix.exactness import check_supported
from reward_model.shared_prefix.interface import enable_shared_prefix, shared_prefix, unwrap
from reward_model.shared_prefix.layout import Layout, join_ids
from reward_model.shared_prefix.logps import HeadShape, token_stats


@dataclass
class PairOutput(ModelOutput):
    """Per-token results where TRL looks for them: `(2B, S-1)`, zero at positions that are no answer's.

    The fields are those of TRL's `FusedCausalLMOutput` that its DPO loss reads.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    log_sum_sq_probs: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    """`()`: how unevenly a mixture of experts was loaded, over all tokens as TRL counts them."""


@dataclass(frozen=True)
class PackedPairs:
    """A TRL batch as one sequence, and the way back."""

    input_ids: torch.Tensor
    """`(1, T)` int64."""
    layout: Layout
    shape: tuple[int, int]
    """`(2B, S-1)`, what TRL expects."""
    positions: torch.Tensor
    """`(C,)` int64: flat index into `shape` of each answer token, in the layout's order."""
    tokens: torch.Tensor
    """`(2B, S)` int64: where in the sequence each token of the batch lies; any place for padding."""

    def unpack(self, values_C: torch.Tensor) -> torch.Tensor:
        """Values of answer tokens → `(2B, S-1)`, zero elsewhere; keeps gradients."""
        rows, width = self.shape
        flat = values_C.new_zeros(rows * width)
        return flat.index_put((self.positions,), values_C).view(rows, width)


def pack_pairs(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> PackedPairs:
    """Lay a `[chosen | rejected]` batch out as `[prompt | chosen | rejected]` sequences, end to end.

    Args:
        input_ids: `(2B, S)`, right-padded; row i and row B + i are a pair.
        attention_mask: `(2B, S)`, 1 where there is a token.
        labels: `(2B, S)`, -100 where there is no answer token.

    Raises:
        ValueError: two rows of a pair have other prompts, or an answer has no tokens (a truncated batch).
    """
    half = input_ids.shape[0] // 2
    width = input_ids.shape[1]
    lengths = attention_mask.sum(dim=1).tolist()
    starts = (labels != -100).int().argmax(dim=1).tolist()
    rows = input_ids.tolist()
    prompts, positions = [], []
    tokens = torch.zeros(input_ids.shape, dtype=torch.long)
    used = 0
    for i in range(half):
        prompt = rows[i][: starts[i]]
        if prompt != rows[half + i][: starts[half + i]]:
            raise ValueError(f"pair {i} of the batch: chosen and rejected have different prompts")
        answers = [rows[j][starts[j] : lengths[j]] for j in (i, half + i)]
        if not prompt or not all(answers):
            raise ValueError(
                f"pair {i} of the batch: the prompt or an answer has no tokens; was it truncated?"
            )
        prompts.append((prompt, answers))
        place = used + len(prompt)
        for j, answer in zip((i, half + i), answers, strict=True):
            tokens[j, : len(prompt)] = torch.arange(used, used + len(prompt))
            tokens[j, len(prompt) : lengths[j]] = torch.arange(place, place + len(answer))
            place += len(answer)
        used = place
        for j in (i, half + i):
            positions.append(torch.arange(starts[j] - 1, lengths[j] - 1) + j * (width - 1))
    packed, layout = join_ids(prompts, device=input_ids.device)
    device = input_ids.device
    return PackedPairs(
        packed, layout, (2 * half, width - 1), torch.cat(positions).to(device), tokens.to(device)
    )


def share_prompt(model: nn.Module, tile: int | None = None) -> None:
    """Make `model` answer TRL's fused call over shared prompts; other calls (generation) stay as they are.

    Args:
        model: a causal LM, wrapped (PEFT, FSDP2, DDP) or not, that TRL has already prepared. Idempotent.
        tile: answer positions that go through the LM head at a time; see `logps.token_stats`.

    Raises:
        UserError: a shared prefix would not be exact for this model.
    """
    inner = unwrap(model)
    if getattr(inner, "_shares_prompts", False):
        return
    check_supported(inner)
    enable_shared_prefix(inner)
    head_shape = HeadShape.of(inner.config.get_text_config())
    trl_forward = inner.forward

    @functools.wraps(type(inner).forward)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return trl_forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        mask = kwargs.pop("attention_mask")
        packed = pack_pairs(kwargs.pop("input_ids"), mask, labels)
        output, routers = _fused(self, packed, head_shape, tile, {**kwargs, "use_cache": False})
        if kwargs.get("output_router_logits"):
            output.aux_loss = _balance(self, routers, packed.tokens, mask)
        return output

    inner.forward = types.MethodType(forward, inner)
    inner._shares_prompts = True


def _fused(
    model: PreTrainedModel,
    packed: PackedPairs,
    head_shape: HeadShape,
    tile: int | None,
    kwargs: dict[str, Any],
) -> tuple[PairOutput, Any]:
    """What TRL reads, and the router logits of each layer where they were asked for."""
    layout = packed.layout
    device = packed.input_ids.device
    with shared_prefix(layout):
        out = model.base_model(input_ids=packed.input_ids, position_ids=layout.position_ids(device), **kwargs)
    head = model.get_output_embeddings()
    hidden_T_H = out.last_hidden_state[0].to(head.weight.device)
    hidden_C_H = hidden_T_H[layout.completion_logit_index(hidden_T_H.device)]
    targets_C = packed.input_ids[0, layout.completion_target_index(device)].to(head.weight.device)
    with _whole(head) as (weight, bias):
        stats = token_stats(hidden_C_H, weight, bias, targets_C, head_shape, tile)
    found = {name: packed.unpack(values.to(device)) for name, values in stats._asdict().items()}
    return PairOutput(**found), getattr(out, "router_logits", None)


def _balance(
    model: PreTrainedModel, routers: Any, tokens: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """The load-balancing loss over the batch as TRL lays it out, where every answer has a prompt of its own."""
    config = model.config.get_text_config()
    index = tokens.flatten()
    laid_out = tuple(layer.reshape(-1, layer.shape[-1])[index.to(layer.device)] for layer in routers)
    loss: torch.Tensor = load_balancing_loss_func(
        laid_out, config.num_experts, config.num_experts_per_tok, attention_mask
    )
    return loss


@contextmanager
def _whole(head: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """The LM head's parameters, gathered where FSDP2 or ZeRO-3 shards them."""
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    if hasattr(weight, "full_tensor"):  # FSDP2 keeps a DTensor
        yield weight.full_tensor(), None if bias is None else bias.full_tensor()
    elif hasattr(weight, "ds_id"):  # DeepSpeed ZeRO-3
        deepspeed = importlib.import_module("deepspeed")
        with deepspeed.zero.GatheredParameters([item for item in (weight, bias) if item is not None]):
            yield weight, bias
    else:
        yield weight, bias
