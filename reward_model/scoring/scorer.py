"""Score answers with a saved reward model: N answers for one reading of the document.

In: document, question, answers. Out: points 0–10, one row an answer, one column a dimension. Where the directory holds
a readout beside the plain head, it is what scores: the model is cut at its layer, and answers are read a second time
behind the bare question where it looks at what the document changes. Prompts that fit
the token budget together share a forward pass; a longer one is read in chunks of the budget, answers on top.
Scores do not depend on what they are batched with, up to rounding: 1e-4 points in fp32; in bf16 by no more than
bf16 itself is off (0.07 points on average and up to 0.3 with SmolLM2, whichever way it is run).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from reward_model.modeling.cut import cut_above
from reward_model.modeling.features import LAST_LAYER, Pooling, decoder_layers, read_features
from reward_model.modeling.head import apply_head
from reward_model.modeling.language_head import LogProbReader
from reward_model.modeling.model import Backbone, Manifest, load_reward_model
from reward_model.modeling.readout import Readout
from reward_model.options import TOKEN_BUDGET, ReadoutChoice, SharedPrefix
from reward_model.scoring.stacked import StackedPrompt
from reward_model.shared_prefix.chunked import chunked_hidden
from reward_model.shared_prefix.cpu_linear import onednn_linears
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.shared_prefix.interface import hidden_one_by_one, shared_forward, unwrap
from reward_model.shared_prefix.layout import EncodedPrompt, PromptShape, Span, join_ids

logger = logging.getLogger(__name__)


class RewardModel:
    """A reward model ready to score.

    Attributes:
        dimensions: names of the columns.
        max_length: longest sequence in tokens.
        tokens_read: tokens that went through the model so far; tokens_one_by_one: what separate passes would read.
        readout: what scores in place of the plain head, if anything.
        stack: what free baselines add to it, if anything; None from then on leaves them out.
        support: what tells the support of sentences, where the model was trained on evidence.
        layers: layers of the model that run; depth: layers it has.
    """

    def __init__(
        self, backbone: Backbone, shared: SharedPrefix = "on", attn_backend: str | None = None
    ) -> None:
        self.model: nn.Module = backbone.model.eval()
        self.tokenizer: Any = backbone.tokenizer
        self.manifest: Manifest = backbone.manifest
        self.renderer = backbone.renderer
        self.readout = backbone.readout
        self.stack = backbone.manifest.stack if backbone.readout else None
        self.support = backbone.support
        self.language_head = backbone.language_head
        self.depth = self.layers = len(decoder_layers(self.model))
        self.score_layer = -1
        if self.readout and self.readout.spec.layer < self.depth:
            if not self.language_head and cut_above(self.model, self.readout.spec.layer):
                self.layers = self.readout.spec.layer
            else:
                self.score_layer = self.readout.spec.layer
        self.shared: SharedPrefix = shared
        self.tokens_read = 0
        self.tokens_one_by_one = 0
        if shared == "on":
            prepare_shared_prefix(self.model, attn_backend, chunked=True)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        attn_backend: str | None = None,
        shared_prefix: SharedPrefix = "on",
        readout: ReadoutChoice = "best",
    ) -> RewardModel:
        """Load what ``reward-model train`` wrote.

        Args:
            path: a full model or an adapter directory.
            device: CUDA when there is one, else CPU.
            dtype: the saved one when None.
            attn_backend: ``flash_attn``, ``torch_varlen``, ``cpu_flash`` or ``sdpa``; None chooses.
            shared_prefix: ``"off"`` runs answers one by one, for models that cannot share.
            readout: ``"best"`` scores with the directory's readout where it has one, ``"plain"`` with the plain head.

        Raises:
            UserError: the directory is not a reward model, or the model cannot share a prefix exactly.
        """
        backbone = load_reward_model(path, dtype or "auto", with_readout=readout == "best")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone.model.to(device)
        if backbone.language_head:
            backbone.language_head = backbone.language_head.beside(backbone.model)
        return cls(backbone, shared_prefix, attn_backend)

    @property
    def dimensions(self) -> list[str]:
        """Names of the columns, in order."""
        return self.manifest.dimensions

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens, document, question and answer together."""
        return self.manifest.max_length

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return unwrap(self.model).device

    def render(self, context: str, query: str) -> list[int]:
        """Ids before an answer."""
        return self.renderer.prefix_ids(context, query)

    def render_answer(self, text: str) -> list[int]:
        """Ids of an answer and its end; the last is where the score is read."""
        return self.renderer.answer_ids(text)

    def render_text(self, context: str, query: str, response: str) -> str:
        """The sequence as text, for programs that tokenize themselves; see ``PromptRenderer.render_text``."""
        return self.renderer.render_text(context, query, response)

    def encode(self, context: str, query: str, responses: Sequence[str]) -> EncodedPrompt:
        """Tokenize a prompt and its answers; never cuts. Compare ``shape.longest`` with ``max_length``."""
        encoded = self.renderer.encode(context, query, responses)
        if self.stack is None:
            return encoded
        # Not everything that loads a model has the statistics that baselines take: a vLLM server has not.
        from reward_model.modeling.stack import read_baselines

        return StackedPrompt.with_baselines(encoded, read_baselines(self.stack, context, query, responses))

    def score(self, context: str, query: str, responses: Sequence[str]) -> np.ndarray:
        """Points ``(N, D)`` fp32 of N answers to one prompt.

        Raises:
            UserError: prompt and answer are longer than the window.
        """
        return next(self.score_encoded([self.encode(context, query, responses)]))

    def score_batch(
        self, prompts: Sequence[tuple[str, str, Sequence[str]]], token_budget: int = TOKEN_BUDGET
    ) -> Iterator[np.ndarray]:
        """Points ``(N, D)`` for each ``(context, query, responses)``, in order; see ``score_encoded``."""
        yield from self.score_encoded([self.encode(*prompt) for prompt in prompts], token_budget)

    def close(self) -> None:
        """Part of the engines' protocol; weights in this process go with the object."""

    @torch.no_grad()
    def score_encoded(
        self, prompts: Sequence[EncodedPrompt], token_budget: int = TOKEN_BUDGET
    ) -> Iterator[np.ndarray]:
        """Points ``(N, D)`` of each prompt, in order, as soon as they are there.

        Args:
            prompts: tokenized prompts; neighbours share a forward pass while the budget lasts.
            token_budget: tokens a forward pass; longer prompts are read in chunks of it.

        Raises:
            UserError: a prompt is longer than the window; checked for all prompts before the first is scored.
        """
        self.check_lengths(prompts)
        with onednn_linears(self.model):
            for prompt, points in zip(prompts, self._read(prompts, token_budget), strict=True):
                yield self.stacked(prompt, points)

    def stacked(self, prompt: EncodedPrompt, points_N_D: np.ndarray) -> np.ndarray:
        """The model's own points of a prompt with what the baselines add, where there is a stack."""
        if self.stack is None or not isinstance(prompt, StackedPrompt):
            return points_N_D
        return self.stack.apply(points_N_D, prompt.baselines_N_B, self.dimensions).astype(np.float32)

    def _read(self, prompts: Sequence[EncodedPrompt], token_budget: int) -> Iterator[np.ndarray]:
        """What the model alone says, prompt by prompt."""
        group: list[EncodedPrompt] = []
        room = token_budget
        for prompt in prompts:
            need = sum(shape.total for shape in self.readings(prompt))
            if group and (need > room or self.shared == "off"):
                yield from self._score_group(group, token_budget)
                group, room = [], token_budget
            group.append(prompt)
            room -= need
        if group:
            yield from self._score_group(group, token_budget)

    def features(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        token_budget: int = TOKEN_BUDGET,
        layers: Sequence[int] = LAST_LAYER,
        pooling: Pooling = "last",
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Frozen features ``(A, L, H)`` of all answers; see ``read_features``. Of a model that is cut at its readout's
        layer, that one is the last.

        Raises:
            UserError: a prompt is longer than the window.
        """
        self.check_lengths(prompts)
        return read_features(
            self.model,
            prompts,
            token_budget=token_budget,
            shared=self.shared == "on",
            layers=layers,
            pooling=pooling,
            progress=progress,
        )

    @property
    def reads(self) -> str:
        """What the scores are read from, and how many layers run for it."""
        what = self.readout.spec.describe() if self.readout else "plain head"
        return f"{what}; {self.layers} of {self.depth} layers run"

    def readings(self, prompt: EncodedPrompt) -> list[PromptShape]:
        """Token counts of what is read to score a prompt: itself, and its bare question where the readout wants it."""
        twice = self.readout is not None and self.readout.spec.needs_withheld
        return [prompt.shape, prompt.withheld().shape] if twice else [prompt.shape]

    def reward(self, scores_N_D: np.ndarray) -> np.ndarray:
        """Weighted mean of the dimensions, ``(N,)``, with the weights the model was saved with."""
        weights = np.asarray(self.manifest.weight_list())
        return (scores_N_D @ weights) / weights.sum()

    def score_spans(self, length: int) -> list[Span]:
        """The spans of an answer of `length` tokens whose mean states at `score_layer`, side by side, score it."""
        pooling = self.readout.spec.pooling if self.readout else "last"
        spans = {"mean": (0, length), "last": (length - 1, length)}
        return [spans[name] for name in pooling.split("+")]

    def count_tokens(self, prompts: Sequence[EncodedPrompt]) -> None:
        """Count prompts that were read once for all their answers."""
        self.tokens_read += sum(prompt.shape.total for prompt in prompts)
        self.tokens_one_by_one += sum(prompt.shape.total_one_by_one for prompt in prompts)

    def check_lengths(self, prompts: Sequence[EncodedPrompt]) -> None:
        """Refuse prompts that are longer than the window.

        Raises:
            UserError: names the first.
        """
        for index, prompt in enumerate(prompts):
            longest = prompt.shape.longest
            if longest > self.max_length:
                raise UserError(
                    f"prompt {index} needs {longest} tokens with its longest answer, the model's window is "
                    f"{self.max_length}",
                    hint="skip it (--overflow skip), or train with a longer window (rope_parameters); it is never cut",
                )

    def _score_group(self, group: Sequence[EncodedPrompt], token_budget: int) -> Iterator[np.ndarray]:
        shapes = [shape for prompt in group for shape in self.readings(prompt)]
        alone = sum(shape.total_one_by_one for shape in shapes)
        self.tokens_one_by_one += alone
        if self.readout is not None:
            self.tokens_read += alone if self.shared == "off" else sum(shape.total for shape in shapes)
            yield from self._read_out(self.readout, group, token_budget)
            return
        if self.shared == "off":
            yield from (self._one_by_one(prompt) for prompt in group)
            return
        self.tokens_read += sum(shape.total for shape in shapes)
        if len(group) == 1 and shapes[0].total > token_budget:
            hidden = chunked_hidden(self.model, *group[0].ids, token_budget)
            yield apply_head(self.model, hidden).cpu().numpy()
            return
        input_ids, layout = join_ids([prompt.ids for prompt in group], self.device)
        hidden = shared_forward(self.model, input_ids, layout)[layout.score_index(self.device)]
        for piece in layout.split(apply_head(self.model, hidden).cpu().numpy()):
            yield np.asarray(piece)

    def _read_out(
        self, readout: Readout, group: Sequence[EncodedPrompt], token_budget: int
    ) -> Iterator[np.ndarray]:
        twice = readout.spec.needs_withheld
        states = read_features(
            self.model,
            [*group, *(prompt.withheld() for prompt in group)] if twice else group,
            token_budget=token_budget,
            shared=self.shared == "on",
            layers=[self.score_layer],
            pooling=readout.spec.pooling,
            log_probs=LogProbReader(self.language_head) if self.language_head else None,
        )[:, 0]
        points = readout.apply(*states.chunk(2)) if twice else readout.apply(states)
        for piece in points.split([len(prompt.answers) for prompt in group]):
            yield piece.numpy()

    def _one_by_one(self, prompt: EncodedPrompt) -> np.ndarray:
        self.tokens_read += prompt.shape.total_one_by_one
        hidden = hidden_one_by_one(self.model, *prompt.ids)
        return apply_head(self.model, hidden).cpu().numpy()
