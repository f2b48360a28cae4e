"""Decoding over a shared prompt: the common beginning is read once, kept once, and attended to by every row.

Used by the local judge (prompts that begin alike) and by `dpo sample` (many answers to one prompt).
`SharedPrefixDecoder` serves models with plain causal attention through transformers' attention interface;
`PlainDecoder` serves the others with the model's own cache. `make_decoder` tries out which one is right.

transformers' continuous batching shares prefixes too, but has one random stream for all requests, processors without
a state per request (a JSON schema needs one) and no top log-probabilities; vLLM on CPU has them, but starts in tens
of seconds and is no dependency that installs everywhere. So this stays.

Shapes: B rows, H query heads, K key heads, P prefix tokens, M room for own tokens, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache

from judge_pipeline.common.kv_cache import cache_argument

ATTENTION = "judge_shared_prefix"
PREFILL_CHUNK = 16384
"""Prompts are read in pieces of this many tokens: activations stay small at 128k."""
ROOM = 256
"""Own tokens that room is made for at a time."""
LayerKV = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, [1, K, tokens, D] each."""


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
    used: int = 0
    """Own tokens of the longest row, this step's included."""
    hidden: torch.Tensor | None = None
    """[B, 1, 1, used]: positions behind each row's last token; None when all rows are of one length."""

    def next_token(self) -> None:
        """Make room for one more token in every row."""
        self.used = int(self.lengths.max()) + 1
        extra = self.used - self.own[0][0].shape[2]
        if extra > 0:
            extra = max(extra, ROOM)
            self.own = [
                (F.pad(keys, (0, 0, 0, extra)), F.pad(values, (0, 0, 0, extra))) for keys, values in self.own
            ]
        positions = torch.arange(self.used, device=self.lengths.device)
        hidden = positions > self.lengths[:, None]
        self.hidden = hidden[:, None, None] if bool(hidden.any()) else None


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
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(shared, _Stepping):
        return _step_attention(query, key, value, shared, layer, scale), None
    shared = shared or _Reading([])
    shared.layers.append((key, value))
    keys, values = key, value
    if shared.past:
        past_keys, past_values = shared.past[layer]
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
    used = state.used
    grouped = query.reshape(batch, kv_heads, groups, size)
    own_scores = grouped @ own_keys[:, :, :used].transpose(-1, -2)
    if state.hidden is not None:
        own_scores = own_scores.masked_fill(state.hidden, float("-inf"))
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
    pairs = zip(ordered[0], ordered[-1], strict=False)  # the two that differ earliest
    return next((n for n, (left, right) in enumerate(pairs) if left != right), min(map(len, ordered)))


class PrefixMemory:
    """Keys and values of prompt beginnings read before, up to `max_tokens` in all; least recently used go first."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._kept: list[tuple[list[int], list[LayerKV]]] = []

    def longest(self, tokens: Sequence[int]) -> tuple[int, list[LayerKV]]:
        """The longest known beginning of `tokens`: its length and its keys and values."""
        lengths = [common_prefix((known, tokens)) for known, _ in self._kept]
        best = max(lengths, default=0)
        if not best:
            return 0, []
        self._kept.append(self._kept.pop(lengths.index(best)))
        return best, [(keys[:, :, :best], values[:, :, :best]) for keys, values in self._kept[-1][1]]

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
        self.reused: list[int] = []
        """Tokens of each row's prompt that did not have to be read again."""

    def start(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read the shared beginning, then each row's own tokens; logits of each row's next token, [B, V]."""
        # Every row must keep one token of its own: its logits are what we are after.
        shared = min(common_prefix(rows), min(len(row) for row in rows) - 1)
        head = list(rows[0][:shared])
        known, layers = self.memory.longest(head)
        if known < shared:
            _, fresh = self._read(head[known:], known, layers)
            layers = _joined(layers, fresh)
            self.memory.put(head, layers)
        readings = [self._read(row[shared:], shared, layers) for row in rows]
        own = [fresh for _, fresh in readings]
        lengths = torch.tensor([len(row) - shared for row in rows], device=self.device)
        self._state = _Stepping(layers, _padded(own, int(lengths.max()) + ROOM), lengths)
        self.reused = [known] + [shared] * (len(rows) - 1)
        return torch.cat([logits for logits, _ in readings])

    def start_copies(self, prompt: Sequence[int], count: int) -> torch.Tensor:
        """Read one prompt that `count` rows go on from; nothing of it is remembered for others. Logits, [count, V]."""
        layers: list[LayerKV] = []
        for start in range(0, len(prompt), PREFILL_CHUNK):
            logits, fresh = self._read(prompt[start : start + PREFILL_CHUNK], start, layers)
            layers = _joined(layers, fresh)
        own = [tuple(kv.new_zeros(count, kv.shape[1], ROOM, kv.shape[3]) for kv in layer) for layer in layers]
        self._state = _Stepping(layers, own, torch.zeros(count, dtype=torch.long, device=self.device))  # type: ignore[arg-type]
        self.reused = [0] + [len(prompt)] * (count - 1)
        return logits.expand(count, -1)

    def _read(
        self, tokens: Sequence[int], start: int, past: list[LayerKV]
    ) -> tuple[torch.Tensor, list[LayerKV]]:
        """Keys and values of `tokens` at positions `start`…, and the logits after the last of them, [1, V]."""
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
        self._state.next_token()
        positions = (self._state.prefix[0][0].shape[2] + self._state.lengths)[:, None]
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
    """Both, one behind the other; in place, layer by layer, so that memory never holds all of it twice."""
    if not past:
        return fresh
    for index, new in enumerate(fresh):
        keys, values = (torch.cat(pair, dim=2) for pair in zip(past[index], new, strict=True))
        past[index] = keys, values
    return past


def _padded(rows: Sequence[list[LayerKV]], room: int) -> list[LayerKV]:
    """Rows of keys and values with different lengths, [1, K, t, D] each, as [B, K, room, D] a layer."""

    def stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([F.pad(part, (0, 0, 0, room - part.shape[2])) for part in parts])

    layers = range(len(rows[0]))
    return [(stack([row[n][0] for row in rows]), stack([row[n][1] for row in rows])) for n in layers]


class PlainDecoder:
    """The model's own cache and attention: for models with windows, sinks or recurrence.

    Prompts are read and gone on with row by row; copies of one prompt share a cache that is repeated for them.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._caches: list[DynamicCache] = []
        self._copies = 1
        self.reused: list[int] = []

    def start(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read each prompt."""
        self._caches = [DynamicCache(config=self.model.config) for _ in rows]
        self._copies, self.reused = 1, [0] * len(rows)
        return torch.cat([self._forward([row], cache) for row, cache in zip(rows, self._caches, strict=True)])

    def start_copies(self, prompt: Sequence[int], count: int) -> torch.Tensor:
        """Read the prompt in pieces, then repeat its cache."""
        cache = DynamicCache(config=self.model.config)
        for start in range(0, len(prompt), PREFILL_CHUNK):
            logits = self._forward([prompt[start : start + PREFILL_CHUNK]], cache)
        cache.batch_repeat_interleave(count)
        self._caches, self._copies = [cache], count
        self.reused = [0] + [len(prompt)] * (count - 1)
        return logits.expand(count, -1)

    def _forward(self, rows: Sequence[Sequence[int]], cache: DynamicCache) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=torch.tensor([list(row) for row in rows], device=self.model.device),
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(cache),
        ).logits[:, -1]
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token further in every row."""
        groups = [tokens[at : at + self._copies] for at in range(0, len(tokens), self._copies)]
        return torch.cat(
            [
                self._forward([[token] for token in group], cache)
                for group, cache in zip(groups, self._caches, strict=True)
            ]
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with fewer rows."""
        if self._copies == 1:
            self._caches = [self._caches[row] for row in rows]
        else:
            self._caches[0].batch_select_indices(torch.tensor(list(rows), device=self.model.device))
            self._copies = len(rows)


Decoder = SharedPrefixDecoder | PlainDecoder


def make_decoder(model: Any, memory_tokens: int = 0) -> Decoder:
    """The decoder that is right for `model`; `memory_tokens` of prompt beginnings are kept between batches."""
    with torch.inference_mode():
        exact = shares_exactly(model)
    return SharedPrefixDecoder(model, PrefixMemory(memory_tokens)) if exact else PlainDecoder(model)


def draw_tokens(
    logits: torch.Tensor, temperature: float, top_p: float, streams: Sequence[torch.Generator]
) -> torch.Tensor:
    """One token a row, [B] from [B, V]: softmax at the temperature, cut to the top-p nucleus, each from its own stream."""
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # A token stays when the mass before it is below top_p, so the first always does.
        ordered = ordered * ((ordered.cumsum(dim=-1) - ordered) < top_p)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    # The smallest of exponential clocks with these rates rings first: what torch.multinomial does, a stream a row.
    noise = torch.empty_like(probabilities)
    for row, stream in zip(noise, streams, strict=True):
        row.exponential_(generator=stream)
    return (probabilities / noise).argmax(dim=-1)


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
        decoder.start(rows)
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
