"""Hidden states of parts of answers, and what these parts look at in the document, from the reading that scores them.

In: a model, encoded prompts, and for each answer the token spans that are wanted (its sentences, its last token, all
of it). Out: the mean over each span at chosen layers, and for an `AttentionWatch` the attention that each span pays to
segments of the prefix. Only pooled states are kept: a document longer than the token budget is read in chunks.

Shape suffixes: S spans of a prompt, G segments of its prefix, L layers, H hidden size, T tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from judge_pipeline.common.progress import Progress
from reward_model.data.batches import token_batches
from reward_model.modeling.features import LayerReader, decoder_layers, mean_token, passes
from reward_model.modeling.language_head import LogProbReader
from reward_model.shared_prefix.cpu_linear import onednn_linears
from reward_model.shared_prefix.interface import listen_to_attention
from reward_model.shared_prefix.layout import EncodedPrompt, Span
from reward_model.shared_prefix.plan import AttentionPlan

Tensor = torch.Tensor
AnswerSpans = Sequence[Sequence[Span]]
"""For each answer of a prompt the spans that are wanted, counted from the answer's first token."""

QUERIES = 32
"""Tokens whose attention is measured at a time."""


@dataclass
class AttentionWatch:
    """Which attention is measured: of every span to segments of its prompt's prefix, in one layer.

    The queries and keys are those of the pass itself; what a span pays is the mean over its tokens and all heads.
    """

    layer: int
    """1 is the first."""
    spans: Sequence[AnswerSpans]
    """Whose attention is measured."""
    segments: Sequence[Sequence[Span]]
    """Of each prompt, counted from the prefix's first token; a prompt without any is not watched."""
    found: list[list[Tensor]] = field(default_factory=list)
    """Of each prompt, for each span the share (G,) of its attention that goes to each segment."""


@torch.no_grad()
def read_spans(
    model: nn.Module,
    prompts: Sequence[EncodedPrompt],
    spans: Sequence[AnswerSpans],
    *,
    token_budget: int,
    shared: bool = True,
    layers: Sequence[int],
    watch: AttentionWatch | None = None,
    progress: Progress | None = None,
    log_probs: LogProbReader | None = None,
) -> list[Tensor]:
    """Means (S, L, H) fp32 on CPU of each prompt's spans, those of its first answer first.

    Args:
        model, prompts, token_budget, shared, layers, progress: as ``read_features`` takes them.
        spans: what is wanted of each prompt; answers without any are not read.
        watch: takes attention in the same passes; only where `shared`, of answers that have `spans`.
        log_probs: takes the log-probabilities of answers in the same passes.

    Raises:
        IndexError: the model has no such layer.
        UserError: the model cannot be exact.
    """
    reader = LayerReader(model, layers, mean_token)
    found: list[list[Tensor]] = [[] for _ in prompts]
    with reader.attached(), onednn_linears(model), ExitStack() as stack:
        listener = _Listener(watch, len(prompts)) if watch else None
        if listener:
            stack.enter_context(listener.attached(model))
        for group in token_batches(prompts, token_budget):
            names = [(index, place) for index in group for place in range(len(prompts[index].answers))]
            done = 0
            for forward, answers in passes(model, [prompts[i] for i in group], token_budget, shared):
                own = names[done : done + len(answers)]
                done += len(answers)
                wanted = _in_pass(spans, own, answers)
                if not wanted:
                    continue
                if listener and watch:
                    listener.wanted = _in_pass(watch.spans, own, answers)
                run = forward
                if log_probs:
                    run = log_probs.during(forward, answers, prompts, own)
                read = reader.read(run, [span for _, span in wanted])
                for (index, _), states in zip(wanted, read, strict=True):
                    found[index].append(states)
            if listener:
                listener.wanted = []
            if progress is not None:
                progress.update(len(group))
    nothing = torch.empty(0, len(layers), 0)
    return [torch.stack(states) if states else nothing for states in found]


def _in_pass(
    spans: Sequence[AnswerSpans], names: Sequence[tuple[int, int]], answers: Sequence[Span]
) -> list[tuple[int, Span]]:
    """(prompt, tokens of the pass) of the spans of the answers (prompt, place) that a pass reads."""
    return [
        (index, (start + first, start + last))
        for (index, place), (start, _) in zip(names, answers, strict=True)
        for first, last in spans[index][place]
    ]


class _Listener:
    """Measures the attention of one layer while it runs."""

    def __init__(self, watch: AttentionWatch, prompts: int) -> None:
        self._watch = watch
        self._inside = False
        self.wanted: Sequence[tuple[int, Span]] = []
        """(prompt, tokens of the pass), of which the attention is wanted."""
        watch.found = [[] for _ in range(prompts)]

    def attached(self, model: nn.Module) -> ExitStack:
        """Listen to the layer that is watched."""
        layer = decoder_layers(model)[self._watch.layer - 1]
        stack = ExitStack()
        for handle in (
            layer.register_forward_pre_hook(self._set(True)),
            layer.register_forward_hook(self._set(False)),
        ):
            stack.callback(handle.remove)
        stack.enter_context(listen_to_attention(self._hear))
        return stack

    def _set(self, inside: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._inside = inside

        return hook

    def _hear(self, query: Tensor, key: Tensor, plan: AttentionPlan, scale: float) -> None:
        if not self._inside:
            return
        for prompt, span in self.wanted:
            if segments := self._watch.segments[prompt]:
                share = attention_to(segments, span, query, key, plan, scale)
                self._watch.found[prompt].append(share)


def attention_to(
    segments: Sequence[Span], span: Span, query: Tensor, key: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    """Share (G,) of the attention of a span's tokens that goes to segments of its context, mean over tokens and heads.

    Args:
        segments: token spans, counted from the start of the context.
        span: queries, of one row of the plan.
        query: (Tq, Hq, D).
        key: (Tk, Hkv, D).
        plan: which keys each row sees.
        scale: of the scores.
    """
    row = next(row for row in plan.rows if row.query[0] <= span[0] < row.query[1])
    (start, stop), heads = span, query.shape[1] // key.shape[1]
    own = row.own[0], row.own[0] + stop - row.query[0]
    places = torch.cat([torch.arange(*row.context), torch.arange(*own)]).to(key.device)
    seen = torch.arange(len(places), device=key.device)[None]
    mass = torch.zeros(len(places), device=key.device)
    # A few queries and one head of the keys at a time: a long document's scores would not fit all at once.
    for first in range(start, stop, QUERIES):
        last = min(first + QUERIES, stop)
        at = torch.arange(first, last, device=key.device)[:, None] - row.query[0] + row.context_length
        hidden = seen > at
        if plan.window is not None:
            hidden |= seen <= at - plan.window
        for number in range(key.shape[1]):
            keys = key[places, number].float()
            queries = query[first:last, number * heads : (number + 1) * heads].float()
            scores = torch.einsum("qhd,kd->hqk", queries, keys).mul_(scale)
            mass += scores.masked_fill_(hidden, float("-inf")).softmax(-1).sum((0, 1))
    mass /= (stop - start) * query.shape[1]
    return torch.stack([mass[first:last].sum() for first, last in segments]).cpu()
