"""A readout: scores from frozen hidden states of one layer, pooled over an answer's tokens.

A plain checkpoint reads its scores from the last token of the last layer. What a model knows of an answer lies
elsewhere too: in the mean over the answer's tokens, in a middle layer, and above all in what the document *changes*
there. View "difference" is the answer's states behind document and question minus its states behind the question
alone; with the document withheld it is zero, so it cannot learn how answers are written.

Saved beside the plain checkpoint as `readout.safetensors`, with its spec in the manifest; only our scorer uses it.
Shape suffixes: N answers, H hidden size, G pooled size (H, or 2 H for "mean+last"), F features, D outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from judge_pipeline.common.errors import UserError
from reward_model.modeling.features import Pooling
from reward_model.modeling.language_head import LOG_PROBS
from reward_model.modeling.ridge import LinearProbe

Tensor = torch.Tensor
View = Literal["document", "difference", "both"]
VIEWS: tuple[View, ...] = ("document", "difference", "both")
READOUT_FILE = "readout.safetensors"


class ReadoutSpec(BaseModel):
    """Where a readout looks; the entry `readout` of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int = Field(ge=0)
    """As transformers' ``hidden_states`` count: i is the output of layer i, the last one after the final norm."""
    pooling: Pooling
    view: View
    log_probs: bool = False
    """Whether each side's states are followed by mean and sum of the answer's log-probabilities (`language_head`)."""

    @property
    def needs_withheld(self) -> bool:
        """Whether the answers are read behind the bare question as well."""
        return self.view != "document"

    def describe(self) -> str:
        """In words, for the card and the terminal."""
        states = {"mean": "mean", "last": "last token", "mean+last": "mean and last token"}[self.pooling]
        view = {
            "document": "read behind the document",
            "difference": "what the document changes in them",
            "both": "read behind the document, and what it changes in them",
        }[self.view]
        also = "; and how likely the model's own language head finds the answer" if self.log_probs else ""
        return f"layer {self.layer}, {states} of the answer's states, {view}{also}"

    def emphasis(self, features_N_F: Tensor) -> Tensor | None:
        """Weights (F,) of the standardised features: together log-probabilities count about as much as the states.

        Two columns among hundreds would otherwise be shrunk to nothing by a penalty that hundreds need.
        """
        if not self.log_probs:
            return None
        sides = 2 if self.view == "both" else 1
        width = features_N_F.shape[1] // sides
        own = torch.ones(width)
        own[-LOG_PROBS:] = (width - LOG_PROBS) ** 0.5 / 2
        return own.repeat(sides)


def view_features(view: View, document_N_G: Tensor, withheld_N_G: Tensor | None) -> Tensor:
    """Features (N, F) of a view: pooled states with the document, and with it withheld where the view needs them."""
    if view == "document":
        return document_N_G
    assert withheld_N_G is not None
    difference = document_N_G - withheld_N_G
    return difference if view == "difference" else torch.cat([document_N_G, difference], dim=1)


@dataclass(frozen=True)
class Readout:
    """Points as a linear function of pooled states."""

    spec: ReadoutSpec
    probe: LinearProbe
    """Weight (D, F) and bias (D,), in points."""

    @torch.no_grad()
    def apply(self, document_N_G: Tensor, withheld_N_G: Tensor | None = None) -> Tensor:
        """Points (N, D) fp32; `withheld_N_G` where ``spec.needs_withheld``."""
        return self.probe(view_features(self.spec.view, document_N_G, withheld_N_G)).float()

    def save(self, directory: str | Path) -> None:
        """Write the weights, fp32, into a model directory; the spec is for its manifest."""
        tensors = {"weight": self.probe.weight_D_H, "bias": self.probe.bias_D}
        save_file(
            {name: value.float().contiguous() for name, value in tensors.items()},
            Path(directory) / READOUT_FILE,
        )

    @classmethod
    def load(cls, directory: str | Path, spec: ReadoutSpec) -> Readout:
        """Read the weights of a spec that the manifest in `directory` holds.

        Raises:
            UserError: the file is missing or broken.
        """
        file = Path(directory) / READOUT_FILE
        try:
            tensors = load_file(file)
            return cls(spec, LinearProbe(tensors["weight"].double(), tensors["bias"].double()))
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{file}, named by the manifest, cannot be read: {error}",
                "restore it, or score with the plain head: --readout plain",
            ) from error
