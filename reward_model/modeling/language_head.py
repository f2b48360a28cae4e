"""How likely the frozen model's own language head finds an answer: what a readout sees beside hidden states.

A changed name or figure hardly moves the mean of an answer's hidden states, but the model that reads the document is
surprised by it. In: final hidden states of a pass and the answers' tokens. Out: mean and sum of the log-probabilities
of each answer's tokens but the first, which the prefix predicts. Nothing more is read for it; only answer positions go
through the head, in tiles.

Shape suffixes: V vocabulary, H hidden size, T tokens of a pass, N answers of a pass, C tokens that predict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.cpu_linear import linear
from reward_model.shared_prefix.interface import unwrap
from reward_model.shared_prefix.layout import EncodedPrompt, Ids, Span
from reward_model.shared_prefix.logps import TILE_ELEMENTS, HeadShape

Tensor = torch.Tensor
FILE = "language_head.safetensors"
NAMES = ("lm_head.weight", "lm_head.bias")
LOG_PROBS = 2
"""Values an answer: mean and sum."""


@dataclass(frozen=True)
class LanguageHead:
    """Weights of a language head, and what the model does to its logits."""

    weight_V_H: Tensor
    bias_V: Tensor | None
    shape: HeadShape
    tied: bool

    @classmethod
    def of_base(cls, model: nn.Module, base_model: str) -> LanguageHead | None:
        """The head of the language model that a classifier was made from; None where its files hold none.

        Args:
            model: the classifier, whose embeddings are the head where the two are tied.
            base_model: name or path, as the manifest has it.
        """
        if _tied(model):
            return cls._of(model, {})
        path = resolve_model(base_model)
        try:
            index = cached_file(
                path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False
            )
            files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"] if index else {}
            found = {}
            for name in NAMES:
                file = cached_file(
                    path, files.get(name, "model.safetensors"), _raise_exceptions_for_missing_entries=False
                )
                if file is None:
                    continue
                with safe_open(file, "pt") as stored:
                    if name in stored.keys():  # noqa: SIM118 - not a mapping
                        found[name] = stored.get_tensor(name)
        except (OSError, SafetensorError):
            return None
        return cls._of(model, found) if NAMES[0] in found else None

    @classmethod
    def load(cls, directory: str | Path, model: nn.Module) -> LanguageHead:
        """The head that `save` left, or the embeddings of `model`.

        Raises:
            UserError: the file is missing or broken.
        """
        if _tied(model):
            return cls._of(model, {})
        file = Path(directory) / FILE
        try:
            return cls._of(model, load_file(file))
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{file}, which the readout needs, cannot be read: {error}",
                "restore it, or score with the plain head: --readout plain",
            ) from error

    @classmethod
    def _of(cls, model: nn.Module, weights: dict[str, Tensor]) -> LanguageHead:
        inner = unwrap(model)
        shape = HeadShape.of(inner.config.get_text_config())
        if _tied(model):
            return cls(inner.get_input_embeddings().weight.detach(), None, shape, True)
        like = next(inner.parameters())
        weight, bias = weights[NAMES[0]], weights.get(NAMES[1])
        moved = None if bias is None else bias.to(like.device, like.dtype)
        return cls(weight.to(like.device, like.dtype), moved, shape, False)

    def beside(self, model: nn.Module) -> LanguageHead:
        """The same head where the model is now, and in its type."""
        weights = {name: value for name, value in zip(NAMES, (self.weight_V_H, self.bias_V), strict=True)}
        return self._of(model, {name: value for name, value in weights.items() if value is not None})

    def save(self, directory: str | Path) -> None:
        """Write the weights beside a model whose embeddings are not the head."""
        if not self.tied:
            tensors = {NAMES[0]: self.weight_V_H} | ({} if self.bias_V is None else {NAMES[1]: self.bias_V})
            save_file(
                {name: value.cpu().contiguous() for name, value in tensors.items()}, Path(directory) / FILE
            )

    @torch.no_grad()
    def log_probs(self, hidden_T_H: Tensor, spans_N: Sequence[Span], answers: Sequence[Ids]) -> Tensor:
        """(N, 2) fp32 on CPU: mean and sum over each answer's tokens but the first; 0 for an answer of one token.

        Args:
            hidden_T_H: final hidden states of a pass.
            spans_N: where the answers lie in it.
            answers: their tokens.
        """
        lengths = [len(answer) - 1 for answer in answers]
        device = hidden_T_H.device
        places_C = torch.cat([torch.arange(start, stop - 1) for start, stop in spans_N]).to(device)
        targets_C = torch.cat([torch.as_tensor(answer[1:], dtype=torch.long) for answer in answers]).to(
            device
        )
        if not len(targets_C):
            return torch.zeros(len(answers), LOG_PROBS)
        hidden_C_H = hidden_T_H[places_C].to(self.weight_V_H.dtype)
        tile = max(1, TILE_ELEMENTS // self.weight_V_H.shape[0])
        pieces = [
            self._tile(hidden, targets)
            for hidden, targets in zip(hidden_C_H.split(tile), targets_C.split(tile), strict=True)
        ]
        parts = torch.cat(pieces).cpu().split(lengths)
        return torch.stack([torch.stack([part.sum() / max(1, len(part)), part.sum()]) for part in parts])

    def _tile(self, hidden_C_H: Tensor, targets_C: Tensor) -> Tensor:
        """Log-probabilities (C,) fp32, and none of what training wants beside them (`shared_prefix.logps`)."""
        logits = linear(hidden_C_H, self.weight_V_H, self.bias_V).float()
        if self.shape.scale != 1.0:
            logits *= self.shape.scale
        if self.shape.softcap is not None:
            logits = self.shape.softcap * torch.tanh(logits / self.shape.softcap)
        return logits.gather(1, targets_C[:, None])[:, 0] - logits.logsumexp(1)


def _tied(model: nn.Module) -> bool:
    return bool(getattr(unwrap(model).config.get_text_config(), "tie_word_embeddings", False))


@dataclass
class LogProbReader:
    """Takes log-probabilities on the way: wraps the passes of a reading."""

    head: LanguageHead
    found: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """(prompt, answer) → (2,)."""

    def during(
        self,
        forward: Callable[[], Tensor],
        spans_N: Sequence[Span],
        prompts: Sequence[EncodedPrompt],
        names_N: Sequence[tuple[int, int]],
    ) -> Callable[[], Tensor]:
        """The same pass, of whose answers (prompt, answer) the log-probabilities are kept when it runs."""
        answers = [prompts[prompt].answers[answer] for prompt, answer in names_N]

        def run() -> Tensor:
            hidden = forward()
            self.found.update(zip(names_N, self.head.log_probs(hidden, spans_N, answers), strict=True))
            return hidden

        return run

    def of(self, names_N: Sequence[tuple[int, int]]) -> Tensor:
        """(N, 2) of answers that were read."""
        return torch.stack([self.found[name] for name in names_N])
