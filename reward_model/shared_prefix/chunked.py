"""Inference over long documents: the prefix in chunks, then all answers over its cached keys.

In: one prompt's prefix and answers. Out: the final hidden state at each answer's last token. Activations are
those of one chunk, whatever the document's length; what grows is the key/value cache (17 GB for 128k tokens with
an 8B model in bf16). Exact: a chunk attends to all earlier keys, an answer to the whole prefix and itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from judge_pipeline.common.kv_cache import cache_argument
from reward_model.shared_prefix.interface import active_plan, unwrap
from reward_model.shared_prefix.layout import Span, TokenIds, join_parts
from reward_model.shared_prefix.plan import AttentionPlan

Tensor = torch.Tensor


class _PrefixLayer(DynamicLayer):
    """A cache layer allocated once for the whole prompt; concatenation would copy the prefix every chunk."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate ``(1, capacity, Hkv, D)`` buffers, token-major as the kernels want them."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            x.new_empty(1, self.capacity, x.shape[1], x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``(1, Hkv, t, D)`` states; returns views of all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.length + key_states.shape[2]
        self.keys[:, self.length : stop] = key_states.transpose(1, 2)
        self.values[:, self.length : stop] = value_states.transpose(1, 2)
        self.length = stop
        return self.keys[:, :stop].transpose(1, 2), self.values[:, :stop].transpose(1, 2)

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return self.length


class PrefixCache(DynamicCache):
    """Key/value cache of one prompt with room for its answers; keeps all keys, sliding layers' too."""

    def __init__(self, capacity: int, layers: int) -> None:
        super().__init__()
        self.layer_class_to_replicate = None
        self.layers = [_PrefixLayer(capacity) for _ in range(layers)]


@torch.no_grad()
def chunked_hidden(
    model: nn.Module,
    prefix: TokenIds,
    answers: Sequence[TokenIds],
    chunk: int,
    backend: str | None = None,
) -> Tensor:
    """Hidden states ``(N, H)`` at the last token of each answer, the prefix read ``chunk`` tokens at a time.

    Arguments and errors are those of ``answer_passes``.
    """
    passes = answer_passes(model, prefix, answers, chunk, backend)
    return torch.cat([forward()[[stop - 1 for _, stop in spans]] for forward, spans in passes])


def answer_passes(
    model: nn.Module, prefix: TokenIds, answers: Sequence[TokenIds], chunk: int, backend: str | None = None
) -> Iterator[tuple[Callable[[], Tensor], list[Span]]]:
    """Read the prefix into a cache, then give (forward pass, token span of each of its answers), all N in order.

    A pass returns final hidden states ``(T, H)`` of its answers' tokens; it must run before the next is taken.

    Args:
        model: prepared by ``enable_shared_prefix`` and in evaluation mode.
        prefix: token ids of document and question.
        answers: token ids of each answer.
        chunk: tokens a forward pass, at least 1; also bounds how many answer tokens are packed at a time.
        backend: as in ``shared_prefix``.

    Raises:
        UserError: the model cannot be exact.
        ValueError: the model is in training mode, where gradient checkpointing would drop the cache.
    """
    if model.training:
        raise ValueError("chunked inference needs model.eval()")
    inner = unwrap(model)
    device = next(inner.parameters()).device
    whole = [len(prefix) + len(answer) for answer in answers]
    room = max(chunk, max(map(len, answers)))
    cache = PrefixCache(len(prefix) + room, inner.config.get_text_config().num_hidden_layers)
    backend = backend or getattr(inner, "_shared_prefix_backend", None)

    def run(parts: Sequence[TokenIds], plan: AttentionPlan) -> Tensor:
        with active_plan(plan):
            out = inner.base_model(
                input_ids=join_parts(parts, device),
                position_ids=plan.positions.unsqueeze(0).to(device),
                use_cache=True,
                **cache_argument(cache),
            )
        return out.last_hidden_state[0]

    for start in range(0, len(prefix), chunk):
        stop = min(start + chunk, len(prefix))
        run([prefix[start:stop]], AttentionPlan.of_chunk(start, stop, whole, backend))
    for group in _groups([len(answer) for answer in answers], room):
        for layer in cache.layers:
            layer.length = len(prefix)  # forget the answers before: each sees the prefix and itself
        parts = [answers[i] for i in group]
        plan = AttentionPlan.of_answers(len(prefix), list(map(len, parts)), backend, whole)
        yield partial(run, parts, plan), [row.query for row in plan.rows]


def _groups(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Consecutive answers, at most ``room`` tokens a group."""
    groups: list[list[int]] = []
    used = room + 1
    for index, length in enumerate(lengths):
        if used + length > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += length
    return groups
