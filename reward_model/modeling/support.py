"""The support readout: how far the document supports a sentence of an answer, from frozen hidden states.

A linear function of the mean over a sentence's tokens at one layer, taken from the same reading as the scores. It was
fitted to the judge's verdicts on the statements that the sentences make. Beside it stands the layer whose attention
says which part of the document a sentence looks at.

Saved in a model directory as `support.safetensors`, with its spec in the manifest; the plain checkpoint stays what it
is. Shape suffixes: S sentences, H hidden size, F features.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from judge_pipeline.common.errors import UserError
from reward_model.modeling.readout import View, view_features
from reward_model.modeling.ridge import LinearProbe
from reward_model.shared_prefix.layout import Span

Tensor = torch.Tensor
SUPPORT_FILE = "support.safetensors"


class SupportFigures(BaseModel):
    """How well sentences of documents that a fold did not read are told apart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sentences: int
    unsupported: int
    """Sentences with a statement that is not fully supported."""
    documents: int
    auc: float
    balanced_accuracy: float
    """With a threshold that was chosen on the other folds."""


class SupportSpec(BaseModel):
    """Where the support readout looks; the entry `support` of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int = Field(ge=1)
    """As transformers' ``hidden_states`` count."""
    view: View
    attention_layer: int = Field(ge=1)
    """Whose attention says what a sentence looks at; 1 is the first."""
    threshold: float
    """Support below which a sentence is flagged."""
    figures: SupportFigures

    @property
    def needs_withheld(self) -> bool:
        """Whether the answers are read behind the bare question as well."""
        return self.view != "document"

    def describe(self) -> str:
        """In words, for the card and the terminal."""
        figures = self.figures
        return (
            f"support of sentences: layer {self.layer}, {self.view}; on {figures.sentences} sentences of "
            f"{figures.documents} documents, by folds over documents: AUC {figures.auc:.2f}, balanced accuracy "
            f"{figures.balanced_accuracy:.2f}"
        )


@dataclass(frozen=True)
class SupportReadout:
    """Support as a linear function of a sentence's mean state."""

    spec: SupportSpec
    probe: LinearProbe
    """Weight (1, F) and bias (1,)."""

    @torch.no_grad()
    def apply(self, document_S_H: Tensor, withheld_S_H: Tensor | None = None) -> Tensor:
        """Support (S,) fp32, 0–1; `withheld_S_H` where ``spec.needs_withheld``."""
        return self.probe(view_features(self.spec.view, document_S_H, withheld_S_H))[:, 0].float().clamp(0, 1)

    def save(self, directory: str | Path) -> None:
        """Write the weights, fp32, into a model directory; the spec is for its manifest."""
        tensors = {"weight": self.probe.weight_D_H, "bias": self.probe.bias_D}
        save_file(
            {name: value.float().contiguous() for name, value in tensors.items()},
            Path(directory) / SUPPORT_FILE,
        )

    @classmethod
    def load(cls, directory: str | Path, spec: SupportSpec) -> SupportReadout:
        """Read the weights of a spec that the manifest in `directory` holds.

        Raises:
            UserError: the file is missing or broken.
        """
        file = Path(directory) / SUPPORT_FILE
        try:
            tensors = load_file(file)
            return cls(spec, LinearProbe(tensors["weight"].double(), tensors["bias"].double()))
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{file}, named by the manifest, cannot be read: {error}", "restore it, or train again"
            ) from error


class Piece(Protocol):
    """Characters `start:end` of a text: a sentence, a segment."""

    @property
    def start(self) -> int:
        """Its first character."""

    @property
    def end(self) -> int:
        """Behind its last."""


def token_spans(places: Sequence[Span], pieces: Sequence[Piece]) -> list[Span | None]:
    """The tokens of each piece of a text, None for one without any.

    A token belongs to the piece that holds its last character: " The" begins with the space before its own.

    Args:
        places: characters of each token, (-1, -1) for those that stand for none.
        pieces: in order.
    """
    lead = next((number for number, (_, end) in enumerate(places) if end >= 0), 0)
    ends = [end for _, end in places if end >= 0]  # of one stretch of tokens, in order
    found: list[Span | None] = []
    for one in pieces:
        first, last = bisect_right(ends, one.start), bisect_right(ends, one.end)
        found.append((lead + first, lead + last) if last > first else None)
    return found
