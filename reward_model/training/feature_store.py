"""Frozen features of all layers on disk, read once: each answer behind its document, and behind the bare question.

In: a frozen model and prompts. Out: files of a few prompts each, `[layer, answer, mean and last token]` in fp32, from
which one layer is loaded at a time. Reading needs the memory of one pass; the disk holds
8 · layers · 2 H bytes an answer (0.3 MB for a 135M model, 2 MB for an 8B one); fitting needs 16 H bytes an answer.
A run that was stopped goes on with the files that are missing, and several processes share them out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from judge_pipeline.common.errors import disk_error
from judge_pipeline.common.progress import Progress
from reward_model.modeling.features import Pooling, decoder_layers, read_features
from reward_model.modeling.language_head import LOG_PROBS, LanguageHead, LogProbReader
from reward_model.shared_prefix.layout import EncodedPrompt

Tensor = torch.Tensor
SIDES, LIKELY = ("document", "withheld"), "log_probs"
"""Names of the tensors of a file."""
DEEP = 40
"""Models with more layers than this are looked at in every second one."""


def probed_layers(model: nn.Module) -> list[int]:
    """Layers a readout is chosen from, lowest first; always the last one, which the plain head sees."""
    depth = len(decoder_layers(model))
    step = 2 if depth > DEEP else 1
    return sorted({*range(depth, 0, -step)})


@dataclass(frozen=True)
class FeatureStore:
    """Features of `prompts`, which know their bare questions, in their order; A answers, G pooled size."""

    folder: Path
    layers: Sequence[int]
    prompts: Sequence[EncodedPrompt]
    part_prompts: int = 8
    """Prompts a file: what a stopped run reads again."""

    def _parts(self) -> list[tuple[Path, slice]]:
        starts = range(0, len(self.prompts), self.part_prompts)
        return [
            (self.folder / f"part-{number:06d}.safetensors", slice(start, start + self.part_prompts))
            for number, start in enumerate(starts)
        ]

    def read(
        self,
        model: nn.Module,
        token_budget: int,
        shared: bool = True,
        rank: int = 0,
        world: int = 1,
        head: LanguageHead | None = None,
    ) -> int:
        """Read what is missing of this process's share; returns the tokens that were read.

        Args:
            model: frozen, in evaluation mode, prepared by ``enable_shared_prefix`` when `shared`.
            token_budget: tokens a pass.
            shared: read a prompt once for all its answers.
            rank: of this process.
            world: processes that share the files out.
            head: whose log-probabilities of the answers are kept too.

        Raises:
            UserError: the disk is full.
        """
        mine = [(file, part) for file, part in self._parts()[rank::world] if not file.is_file()]
        tokens = 0
        if not mine:
            return tokens
        with Progress(sum(len(self.prompts[part]) for _, part in mine), "features", "prompts") as progress:
            for file, part in mine:
                group = [*self.prompts[part], *(item.withheld() for item in self.prompts[part])]
                read = read_features(
                    model,
                    group,
                    token_budget=token_budget,
                    shared=shared,
                    layers=self.layers,
                    pooling="mean+last",
                    log_probs=LogProbReader(head) if head else None,
                )
                kept = {}
                if head:
                    kept[LIKELY], read = read[:, 0, -LOG_PROBS:], read[..., :-LOG_PROBS]
                kept |= dict(zip(SIDES, read.transpose(0, 1).chunk(2, dim=1), strict=True))
                self._save(file, {name: value.contiguous() for name, value in kept.items()})
                shapes = [prompt.shape for prompt in group]
                tokens += sum(shape.total if shared else shape.total_one_by_one for shape in shapes)
                progress.update(len(group) // 2)
        return tokens

    def _save(self, file: Path, tensors: dict[str, Tensor]) -> None:
        temporary = file.with_suffix(".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary)
            os.replace(temporary, file)
        except OSError as error:
            raise disk_error(error, file) from error

    def states(self, layer: int, pooling: Pooling) -> tuple[Tensor, Tensor]:
        """(document, withheld) (A, G) fp32 of one layer."""
        place = list(self.layers).index(layer)
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for file, _ in self._parts():
            with safe_open(file, "pt") as stored:
                for side, name in zip(sides, SIDES, strict=True):
                    values = stored.get_slice(name)[place : place + 1][0]
                    half = values.shape[1] // 2
                    part = {"mean": slice(None, half), "last": slice(half, None), "mean+last": slice(None)}
                    side.append(values[:, part[pooling]])
        return torch.cat(sides[0]), torch.cat(sides[1])

    def log_probs(self) -> tuple[Tensor, Tensor] | None:
        """(document, withheld) (A, 2) fp32, mean and sum of an answer's log-probabilities; None where none were read."""
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for file, _ in self._parts():
            with safe_open(file, "pt") as stored:
                if LIKELY not in stored.keys():  # noqa: SIM118 - not a mapping
                    return None
                for side, values in zip(sides, stored.get_tensor(LIKELY).chunk(2), strict=True):
                    side.append(values)
        return torch.cat(sides[0]), torch.cat(sides[1])
