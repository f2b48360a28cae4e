"""What `distil.py` and `summedits.py` measure on: answers with targets, frozen features, and baselines that cost nothing.

In: label files and prompts by path, a base model. Out: a `Material`: the answers laid out, the hidden states of every
answer behind its own document, behind the bare question and behind another document, and a column for each baseline.
Everything that was read lies in the work folder, a file a prompt, so a stopped run goes on; texts stay in memory.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import Prompt
from judge_pipeline.statistics.baselines import all_baselines, minilm_embed
from judge_pipeline.statistics.table import AnswerTable, Floats, build_table
from reward_model.data.batches import EncodedExample, encode_examples
from reward_model.data.examples import Example, load_examples, usable
from reward_model.data.splits import document_groups
from reward_model.modeling.features import read_features
from reward_model.modeling.language_head import LOG_PROBS, LanguageHead, LogProbReader
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.options import Targets
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.training.feature_store import FeatureStore, probed_layers

Tensor = torch.Tensor
TOKEN_BUDGET = 4096
FREE = ("longer answer", "shorter answer", "bigram support", "question similarity", "evidence similarity")
"""Baselines of `all_baselines` that are rules; chance and the constant are left to the tests."""


@dataclass(frozen=True)
class Material:
    """Answers of prompts in one order everywhere; A of them."""

    name: str
    table: AnswerTable
    examples: Sequence[Example]
    documents: Sequence[str]
    """Name of each prompt's document, equal where ids or texts are."""
    dimensions: tuple[str, ...]

    @property
    def targets(self) -> dict[str, Floats]:
        """Dimension → points (A,)."""
        values = np.concatenate([item.targets_N_D for item in self.examples]).astype(float)
        return {name: values[:, place] for place, name in enumerate(self.dimensions)}

    def behind_another(self, seed: int = 0) -> list[Example]:
        """The same questions and answers, each prompt with a document that is not its own, drawn at random."""
        rng, found = random.Random(seed), []
        for number, item in enumerate(self.examples):
            others = [place for place, name in enumerate(self.documents) if name != self.documents[number]]
            found.append(replace(item, context=self.examples[rng.choice(others)].context))
        return found


def load_material(
    name: str,
    labels: Path,
    prompts: Path | None,
    targets: Targets = "auto",
    dimensions: Sequence[str] | None = None,
) -> Material:
    """Read labels with their prompts, or prompts that people judged; answers without a target are left out."""
    found = load_examples(labels, prompts=prompts, targets=targets, dimensions=dimensions)
    items = list(usable(found.items))
    by_id = {prompt.id: prompt for prompt in read_prompts(prompts or labels)}
    kept = [_kept(by_id[item.prompt_id], item) for item in items]
    return Material(name, build_table(kept), items, document_groups(items), found.dimensions)


def _kept(prompt: Prompt, item: Example) -> Prompt:
    by_id = {response.id: response for response in prompt.responses}
    there = set(item.response_ids)
    chosen = [pair for pair in prompt.preferences if {pair.winner, pair.loser} <= there]
    return prompt.model_copy(
        update={"responses": [by_id[name] for name in item.response_ids], "preferences": chosen}
    )


def load_frozen(base_model: str, dimensions: Sequence[str]) -> Backbone:
    """The base model in fp32, ready to read shared prefixes."""
    backbone = load_backbone_for_rm(base_model, dimensions, torch.float32)
    prepare_shared_prefix(backbone.model, chunked=True)
    backbone.model.eval()
    return backbone


@dataclass(frozen=True)
class OtherStore:
    """Features of the answers behind another document, a file a prompt; the same layers as the own store's."""

    folder: Path
    layers: Sequence[int]
    prompts: Sequence[EncodedExample]

    def _file(self, prompt: EncodedExample) -> Path:
        return self.folder / f"{prompt.prompt_id}.safetensors"

    def read(self, model: nn.Module, head: LanguageHead | None) -> None:
        """Read what is missing."""
        missing = [prompt for prompt in self.prompts if not self._file(prompt).is_file()]
        self.folder.mkdir(parents=True, exist_ok=True)
        with Progress(len(missing), "features behind another document", "prompts") as progress:
            for prompt in missing:
                read = read_features(
                    model,
                    [prompt],
                    token_budget=TOKEN_BUDGET,
                    layers=self.layers,
                    pooling="mean+last",
                    log_probs=LogProbReader(head) if head else None,
                )
                kept = {}
                if head:
                    kept["log_probs"], read = read[:, 0, -LOG_PROBS:].contiguous(), read[..., :-LOG_PROBS]
                save_file({"other": read.transpose(0, 1).contiguous(), **kept}, self._file(prompt))
                progress.update()

    def states(self) -> Tensor:
        """(L, A, 2 H), mean and last token."""
        return torch.cat([load_file(self._file(prompt))["other"] for prompt in self.prompts], dim=1)

    def log_probs(self) -> Tensor | None:
        """(A, 2), mean and sum of an answer's log-probabilities; None where none were read."""
        parts = [load_file(self._file(prompt)).get("log_probs") for prompt in self.prompts]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None


@dataclass(frozen=True)
class Stores:
    """Features of a material: behind the own document (and the bare question), and behind another one."""

    own: FeatureStore
    other: OtherStore
    encoded: Sequence[EncodedExample]
    head: LanguageHead | None

    def read_own(self, model: nn.Module) -> None:
        """Read what is missing behind the own document and the bare question."""
        self.own.read(model, TOKEN_BUDGET, head=self.head)

    def read(self, model: nn.Module) -> None:
        """Read all that is missing."""
        self.read_own(model)
        self.other.read(model, self.head)


def stores_of(material: Material, backbone: Backbone, folder: Path) -> Stores:
    """Where the features lie; nothing is read yet."""
    encode, layers = backbone.renderer.encode, probed_layers(backbone.model)
    own = encode_examples(material.examples, encode)
    other = encode_examples(material.behind_another(), encode)
    return Stores(
        FeatureStore(folder / "own", layers, own, part_prompts=1),
        OtherStore(folder / "other", layers, other),
        own,
        LanguageHead.of_base(backbone.model, backbone.manifest.base_model),
    )


def likelihood(stores: Stores) -> dict[str, Floats]:
    """The base model's log-probability of each answer, and what the document adds to it: read with the features."""
    read = stores.own.log_probs()
    columns: dict[str, Floats] = {}
    for place, key in enumerate(("mean", "sum")) if read else ():
        assert read is not None
        document, withheld = (side[:, place].double().numpy() for side in read)
        columns |= {f"log-prob., {key}": document, f"log-prob. gain, {key}": document - withheld}
    return columns


def free_baselines(material: Material, folder: Path) -> dict[str, Floats]:
    """Length both ways, bigram support, question and evidence similarity; kept in the work folder."""
    file = folder / "baselines.npz"
    if not file.is_file():
        found = all_baselines(material.table, minilm_embed())
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, **{name: found[name] for name in FREE})  # type: ignore[arg-type]
    with np.load(file) as stored:
        return {name: stored[name] for name in FREE}
