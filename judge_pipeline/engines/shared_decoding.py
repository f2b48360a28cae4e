"""Decoding a batch of prompts that begin alike: the common beginning is read once and kept once.

Judge prompts of one template share their instructions and examples, and often a document. `SharedPrefixDecoder`
reads the shared tokens once, each row's own tokens once, and decodes all rows together; the shared keys and
values are one tensor that every row's query attends to, never copied per row. It works through transformers'
attention interface, for every model with plain causal attention; `PlainDecoder` serves the others, row by row,
with the model's own cache. Which one is right for a model is found out with numbers when it is loaded.

Shapes: B rows, H query heads, K key heads, P prefix tokens, M room for own tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache

from judge_pipeline.common.kv_cache import cache_argument

ATTENTION = "judge_shared_prefix"
LayerKV = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, [1, K, tokens, D] each."""


class Decoder(Protocol):
    """Reads prompts, then steps all rows a token at a time."""

    def start(self, rows: Sequence[Sequence[int]], new_tokens: int) -> torch.Tensor:
        """Read the prompts; logits of each row's next token, [B, vocabulary]."""
        ...

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; logits of the next, [B, vocabulary]."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only (positions in the present batch)."""
        ...

    @property
    def reused(self) -> list[int]:
        """Tokens of each row's prompt that did not have to be read again."""
        ...


@dataclass
class _Reading:
    """One row being read: `past` holds keys and values of the tokens before it; `layers` collects new ones."""

    past: list[LayerKV]
    layers: list[LayerKV] = field(default_factory=list)


@dataclass
class _Stepping:
    """All rows taking one step."""

    prefix: list[LayerKV]
    own: list[LayerKV]
    """[B, K, M, D] each; row b holds `lengths[b]` tokens."""
    lengths: torch.Tensor


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared: _Reading | _Stepping | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function registered with transformers; [B, H, T, D] in, [B, T, H, D] out."""
    layer = module.layer_idx
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(shared, _Stepping):
        return _step_attention(query, key, value, shared, int(layer), scale), None  # type: ignore[arg-type]
    if shared is None:
        shared = _Reading([])
    shared.layers.append((key, value))
    keys, values = key, value
    if shared.past:
        past_keys, past_values = shared.past[int(layer)]  # type: ignore[arg-type]
        keys, values = torch.cat((past_keys, key), dim=2), torch.cat((past_values, value), dim=2)
    groups = query.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    before = keys.shape[2] - query.shape[2]
    mask = None
    if before:  # torch's own causal flag aligns top-left, which is wrong behind a past
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril(before)
    out = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None and query.shape[2] > 1, scale=scale
    )
    return out.transpose(1, 2), None


def _step_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, state: _Stepping, layer: int, scale: float
) -> torch.Tensor:
    """One query a row over the shared prefix and the row's own tokens; softmax over both together."""
    batch, heads, _, size = query.shape
    own_keys, own_values = state.own[layer]
    rows = torch.arange(batch, device=query.device)
    own_keys[rows, :, state.lengths] = key[:, :, 0]
    own_values[rows, :, state.lengths] = value[:, :, 0]
    kv_heads = own_keys.shape[1]
    groups = heads // kv_heads
    used = int(state.lengths.max()) + 1
    grouped = query.reshape(batch, kv_heads, groups, size)
    own_scores = grouped @ own_keys[:, :, :used].transpose(-1, -2)
    hidden = torch.arange(used, device=query.device) > state.lengths[:, None]
    own_scores = own_scores.masked_fill(hidden[:, None, None], float("-inf"))
    prefix_keys, prefix_values = state.prefix[layer]
    # All rows' queries against one copy of the prefix: a single product a head.
    flat = grouped.transpose(0, 1).reshape(kv_heads, batch * groups, size)
    prefix_scores = (
        (flat @ prefix_keys[0].transpose(-1, -2)).view(kv_heads, batch, groups, -1).transpose(0, 1)
    )
    scores = torch.cat((prefix_scores, own_scores), dim=-1).float() * scale
    weights = scores.softmax(-1).to(query.dtype)
    prefix_len = prefix_keys.shape[2]
    on_prefix = weights[..., :prefix_len].transpose(0, 1).reshape(kv_heads, batch * groups, prefix_len)
    out = (on_prefix @ prefix_values[0]).view(kv_heads, batch, groups, size).transpose(0, 1)
    out = out + weights[..., prefix_len:] @ own_values[:, :, :used]
    return out.reshape(batch, 1, heads, size)


AttentionInterface.register(ATTENTION, _attend)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows share."""
    ordered = sorted(list(row) for row in rows)
    first, last = ordered[0], ordered[-1]  # the two that differ earliest
    for position, (left, right) in enumerate(zip(first, last, strict=False)):
        if left != right:
            return position
    return min(len(first), len(last))


class PrefixMemory:
    """Keys and values of prompt beginnings read before, up to `max_tokens` in all; least recently used go first."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._kept: list[tuple[list[int], list[LayerKV]]] = []

    def longest(self, tokens: Sequence[int]) -> tuple[int, list[LayerKV]]:
        """The longest known beginning of `tokens`: its length and its keys and values."""
        best, found = 0, -1
        for index, (known, _) in enumerate(self._kept):
            length = common_prefix((known, tokens))
            if length > best:
                best, found = length, index
        if found < 0:
            return 0, []
        entry = self._kept.pop(found)
        self._kept.append(entry)
        return best, [(keys[:, :, :best], values[:, :, :best]) for keys, values in entry[1]]

    def put(self, tokens: list[int], layers: list[LayerKV]) -> None:
        """Remember a beginning; shorter beginnings of it are forgotten."""
        self._kept = [entry for entry in self._kept if entry[0] != tokens[: len(entry[0])]]
        self._kept.append((tokens, layers))
        while len(self._kept) > 1 and sum(len(entry[0]) for entry in self._kept) > self.max_tokens:
            self._kept.pop(0)


class SharedPrefixDecoder:
    """See the module's docstring. The model must have been loaded with `attn_implementation=ATTENTION`."""

    def __init__(self, model: Any, memory: PrefixMemory) -> None:
        self.model, self.memory = model, memory
        self.device = model.device
        self._state = _Stepping([], [], torch.zeros(0, dtype=torch.long))
        self._prefix_len = 0
        self._reused: list[int] = []

    @property
    def reused(self) -> list[int]:
        """Tokens of each row's prompt that did not have to be read again."""
        return self._reused

    def start(self, rows: Sequence[Sequence[int]], new_tokens: int) -> torch.Tensor:
        """Read the shared beginning, then each row's own tokens."""
        # Every row must keep one token of its own: its logits are what we are after.
        shared = min(common_prefix(rows), min(len(row) for row in rows) - 1)
        head = list(rows[0][:shared])
        known, layers = self.memory.longest(head)
        if known < shared:
            _, fresh = self._read(head[known:], known, layers)
            layers = _joined(layers, fresh)
            self.memory.put(head, layers)
        readings = [self._read(row[shared:], shared, layers) for row in rows]
        self._state = _Stepping(
            layers, self._own(rows, readings, shared, new_tokens), self._lengths(rows, shared)
        )
        self._prefix_len = shared
        self._reused = [known] + [shared] * (len(rows) - 1)
        return torch.cat([logits for logits, _ in readings])

    def _lengths(self, rows: Sequence[Sequence[int]], shared: int) -> torch.Tensor:
        return torch.tensor([len(row) - shared for row in rows], device=self.device)

    def _own(
        self,
        rows: Sequence[Sequence[int]],
        readings: Sequence[tuple[torch.Tensor, list[LayerKV]]],
        shared: int,
        new_tokens: int,
    ) -> list[LayerKV]:
        room = max(len(row) for row in rows) - shared + new_tokens
        own: list[LayerKV] = []
        for layer in range(len(readings[0][1])):
            like = readings[0][1][layer][0]
            shape = (len(rows), like.shape[1], room, like.shape[3])
            keys, values = like.new_zeros(shape), like.new_zeros(shape)
            for row, (_, layers) in enumerate(readings):
                length = layers[layer][0].shape[2]
                keys[row, :, :length], values[row, :, :length] = layers[layer][0][0], layers[layer][1][0]
            own.append((keys, values))
        return own

    def _read(
        self, tokens: Sequence[int], start: int, past: list[LayerKV]
    ) -> tuple[torch.Tensor, list[LayerKV]]:
        """Keys and values of `tokens` at positions `start`…, and the logits after the last of them."""
        reading = _Reading(past)
        ids = torch.tensor([list(tokens)], device=self.device)
        positions = torch.arange(start, start + len(tokens), device=self.device)[None]
        logits = self.model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, shared=reading
        ).logits[:, -1]
        return logits, reading.layers

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token further in every row."""
        ids = torch.tensor(list(tokens), device=self.device)[:, None]
        positions = (self._prefix_len + self._state.lengths)[:, None]
        logits: torch.Tensor = self.model(
            input_ids=ids, position_ids=positions, use_cache=False, shared=self._state
        ).logits[:, -1]
        self._state.lengths = self._state.lengths + 1
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with fewer rows."""
        index = torch.tensor(list(rows), device=self.device)
        self._state.lengths = self._state.lengths[index]
        self._state.own = [(keys[index], values[index]) for keys, values in self._state.own]


def _joined(past: list[LayerKV], fresh: list[LayerKV]) -> list[LayerKV]:
    if not past:
        return fresh
    return [
        (torch.cat((old[0], new[0]), dim=2), torch.cat((old[1], new[1]), dim=2))
        for old, new in zip(past, fresh, strict=True)
    ]


class PlainDecoder:
    """Row by row with the model's own cache and attention: for models with windows, sinks or recurrence."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._caches: list[DynamicCache] = []
        self._reused: list[int] = []

    @property
    def reused(self) -> list[int]:
        """Nothing is reused."""
        return self._reused

    def start(self, rows: Sequence[Sequence[int]], new_tokens: int) -> torch.Tensor:
        """Read each prompt."""
        self._caches = [DynamicCache(config=self.model.config) for _ in rows]
        self._reused = [0] * len(rows)
        return torch.cat([self._forward(row, cache) for row, cache in zip(rows, self._caches, strict=True)])

    def _forward(self, tokens: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        logits: torch.Tensor = self.model(
            input_ids=ids, use_cache=True, logits_to_keep=1, **cache_argument(cache)
        ).logits[:, -1]
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token further in every row."""
        pairs = zip(tokens, self._caches, strict=True)
        return torch.cat([self._forward([token], cache) for token, cache in pairs])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with fewer rows."""
        self._caches = [self._caches[row] for row in rows]


def shares_exactly(model: Any) -> bool:
    """Whether the shared-prefix decoder gives this model's own numbers: tried on a few tokens, not assumed.

    Sliding windows show only beyond their length, so a configuration that names one is not trusted.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "attn_logit_softcapping", None):
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    before = model.config._attn_implementation
    rows = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12, 13]]
    follow = [14, 15]
    try:
        model.set_attn_implementation(ATTENTION)
        decoder = SharedPrefixDecoder(model, PrefixMemory(0))
        decoder.start(rows, 2)
        ours = decoder.step(follow)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        model.set_attn_implementation(before)
        return False  # a model that does not pass our state to its attention
    model.set_attn_implementation(before)
    for row, token, logits in zip(rows, follow, ours, strict=True):
        reference = model(input_ids=torch.tensor([[*row, token]], device=model.device)).logits[0, -1]
        error = (logits - reference).float().abs().max() / reference.float().abs().max()
        if not error < (1e-3 if logits.dtype == torch.float32 else 0.1):
            return False
    model.set_attn_implementation(ATTENTION)
    return True
