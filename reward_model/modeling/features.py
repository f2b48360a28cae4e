"""Frozen features of answers: hidden states of chosen layers, pooled over each answer, in one reading of its prompt.

In: a model and encoded prompts. Out: fp32 features. A document is read once for all its answers and for all layers;
one longer than the token budget is read in chunks, and only pooled states are kept, so memory does not grow with the
number of layers. Shape suffixes: A answers of all prompts, N of one pass, L layers, H hidden size, T tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn

from judge_pipeline.common.progress import Progress
from reward_model.data.batches import token_batches
from reward_model.modeling.language_head import LogProbReader
from reward_model.shared_prefix.chunked import answer_passes
from reward_model.shared_prefix.cpu_linear import onednn_linears
from reward_model.shared_prefix.interface import forward_alone, shared_forward, unwrap
from reward_model.shared_prefix.layout import EncodedPrompt, Span, join_ids

Tensor = torch.Tensor
Pooling = Literal["mean", "last", "mean+last"]
LAST_LAYER = (-1,)
"""What the score head sees: the final hidden state, after the last norm."""


def last_token(hidden_T_H: Tensor, spans_N: Sequence[Span]) -> Tensor:
    """Each answer's last token (N, H), where the score is read."""
    return hidden_T_H[[stop - 1 for _, stop in spans_N]]


def mean_token(hidden_T_H: Tensor, spans_N: Sequence[Span]) -> Tensor:
    """Mean over each answer's tokens (N, H), its end token included, in fp32."""
    return torch.stack([hidden_T_H[start:stop].float().mean(0) for start, stop in spans_N])


def mean_and_last(hidden_T_H: Tensor, spans_N: Sequence[Span]) -> Tensor:
    """Both side by side (N, 2 H)."""
    both = mean_token(hidden_T_H, spans_N), last_token(hidden_T_H, spans_N).float()
    return torch.cat(both, dim=1)


POOLINGS: dict[Pooling, Callable[[Tensor, Sequence[Span]], Tensor]] = {
    "mean": mean_token,
    "last": last_token,
    "mean+last": mean_and_last,
}


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's stack of layers, whatever its class calls it.

    Raises:
        ValueError: there is no list of as many modules as the configuration has layers.
    """
    inner = unwrap(model)
    depth = inner.config.get_text_config().num_hidden_layers
    for module in inner.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(inner).__name__} has no list of {depth} layers")


@torch.no_grad()
def read_features(
    model: nn.Module,
    prompts: Sequence[EncodedPrompt],
    *,
    token_budget: int,
    shared: bool = True,
    layers: Sequence[int] = LAST_LAYER,
    pooling: Pooling = "last",
    progress: Progress | None = None,
    log_probs: LogProbReader | None = None,
) -> Tensor:
    """Features (A, L, H), fp32 on CPU, of the answers of all prompts in their order; (A, L, 2 H) for "mean+last".

    Args:
        model: in evaluation mode; prepared by ``enable_shared_prefix`` when `shared`.
        prompts: within the model's window.
        token_budget: tokens a pass; prompts that fit it together share one.
        shared: read a prompt once for all its answers; False reads each answer alone.
        layers: counted as transformers' ``hidden_states``: 0 the embeddings, i the output of layer i, the last one
            after the final norm; negative from the end.
        pooling: an answer's last token, the mean over its tokens, or both side by side, mean first.
        progress: counts the prompts that are read.
        log_probs: takes the answers' log-probabilities on the way, which follow the features of each layer then:
            (A, L, H + 2).

    Raises:
        IndexError: the model has no such layer.
        UserError: the model cannot be exact.
    """
    reader = LayerReader(model, layers, POOLINGS[pooling])
    features: dict[int, Tensor] = {}
    with reader.attached(), onednn_linears(model):
        for group in token_batches(prompts, token_budget):
            names = iter([(index, place) for index in group for place in range(len(prompts[index].answers))])
            pieces = []
            for forward, spans in passes(model, [prompts[i] for i in group], token_budget, shared):
                own, run = list(islice(names, len(spans))), forward
                if log_probs:
                    run = log_probs.during(forward, spans, prompts, own)
                read = reader.read(run, spans)
                if log_probs:
                    read = torch.cat([read, log_probs.of(own)[:, None].expand(-1, len(layers), -1)], dim=2)
                pieces.append(read)
            counts = [len(prompts[index].answers) for index in group]
            features.update(zip(group, torch.cat(pieces).split(counts), strict=True))
            if progress is not None:
                progress.update(len(group))
    return torch.cat([features[index] for index in range(len(prompts))])


Pass = tuple[Callable[[], Tensor], Sequence[Span]]
"""A forward pass, which returns final hidden states (T, H), and the token spans of its answers."""


def passes(
    model: nn.Module, prompts: Sequence[EncodedPrompt], token_budget: int, shared: bool
) -> Iterator[Pass]:
    """The passes that read all answers of the prompts, in order."""
    if not shared:
        for prompt in prompts:
            for answer in prompt.answers:
                span = (len(prompt.prefix), len(prompt.prefix) + len(answer))
                yield partial(forward_alone, model, prompt.prefix, answer), [span]
    elif sum(prompt.shape.total for prompt in prompts) > token_budget:
        for prompt in prompts:
            yield from answer_passes(model, *prompt.ids, token_budget)
    else:
        input_ids, layout = join_ids([prompt.ids for prompt in prompts], unwrap(model).device)
        yield partial(shared_forward, model, input_ids, layout), layout.answer_spans


class LayerReader:
    """Pools the answers' hidden states on their way through the model: what goes into layer i came out of i - 1."""

    def __init__(
        self, model: nn.Module, layers: Sequence[int], pool: Callable[[Tensor, Sequence[Span]], Tensor]
    ) -> None:
        self._stack = decoder_layers(model) if any(layer != -1 for layer in layers) else ()
        depth = len(self._stack)
        self._layers = [layer if layer < 0 else layer - depth - 1 for layer in layers]
        if not layers or min(self._layers) < -depth - 1 or max(self._layers) > -1:
            raise IndexError(f"layers {list(layers)}: this model has 0 to {len(decoder_layers(model))}")
        self._pool = pool
        self._spans: Sequence[Span] = ()
        self._pooled: dict[int, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen to the layers that are wanted."""
        handles = [
            self._stack[layer + 1].register_forward_pre_hook(partial(self._hear, layer), with_kwargs=True)
            for layer in sorted(set(self._layers) - {-1})
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hear(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._spans:  # a chunk of the prefix has no answers
            hidden_1_T_H = args[0] if args else kwargs["hidden_states"]
            self._pooled[layer] = self._pool(hidden_1_T_H[0], self._spans)

    def read(self, forward: Callable[[], Tensor], spans_N: Sequence[Span]) -> Tensor:
        """(N, L, H) of the answers of one pass."""
        self._spans = spans_N
        try:
            self._pooled[-1] = self._pool(forward(), spans_N)
        finally:
            self._spans = ()
        return torch.stack([self._pooled[layer].float() for layer in self._layers], dim=1).cpu()
