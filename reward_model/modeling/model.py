"""Load a base model as a reward model, and save it so that others load it with no code of ours.

What is saved is a plain ``AutoModelForSequenceClassification``: one output a dimension in points 0–10,
``problem_type="regression"``, safetensors, or a LoRA adapter together with its head. Beside it lies
``reward_model.json`` (``Manifest``): prompt format, window, dimensions, weights. It is written last, so its
presence means the directory is complete; scoring and DPO inherit from it.

The head has no bias and works in points; see ``head`` for why and how. The pad token never equals the token an
answer ends with, because transformers pools the last token that is not padding (SmolLM2 pads with its end token).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, logging

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError, disk_error
from judge_pipeline.common.records import DIMENSIONS
from reward_model.modeling.head import score_layer
from reward_model.modeling.language_head import FILE as HEAD_FILE
from reward_model.modeling.language_head import LanguageHead
from reward_model.modeling.prompt_format import PromptFormat, PromptRenderer
from reward_model.modeling.readout import READOUT_FILE, Readout, ReadoutSpec
from reward_model.modeling.stack_spec import StackSpec
from reward_model.modeling.support import SUPPORT_FILE, SupportReadout, SupportSpec
from reward_model.shared_prefix.interface import unwrap

MANIFEST = "reward_model.json"


class Manifest(BaseModel):
    """What scoring must know beside the weights; the content of ``reward_model.json``."""

    model_config = ConfigDict(extra="allow")

    dimensions: list[str] = Field(default_factory=lambda: list(DIMENSIONS))
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each dimension in the reward; a dimension that is not named has weight 1."""
    max_length: int
    """Longest sequence in tokens, document, question and answer together."""
    prompt_format: PromptFormat
    base_model: str
    """Name or path the model was trained from, as the user gave it."""
    adapter: bool = False
    """The directory holds a LoRA adapter and its head; the base model is loaded beside it."""
    rope_parameters: dict[str, Any] | None = None
    readout: ReadoutSpec | None = None
    """Where a better readout than the plain head looks; its weights are in ``readout.safetensors``."""
    stack: StackSpec | None = None
    """What free baselines add to the readout's outputs."""
    support: SupportSpec | None = None
    """Where the support of sentences is read (``--explain``); its weights are in ``support.safetensors``."""
    outputs: str = "points 0-10, no bias, no scaling to undo"
    training_mean: dict[str, float] = Field(default_factory=dict)
    training_std: dict[str, float] = Field(default_factory=dict)
    """Mean and spread of the labels the losses were standardised with: a note, scoring does not use them."""
    trained_documents: list[str] = Field(default_factory=list)
    """Digests of the ids and texts of the documents that were trained on (``splits.document_digests``)."""
    versions: dict[str, str] = Field(default_factory=dict)

    def weight_list(self) -> list[float]:
        """Weights in the order of ``dimensions``."""
        return [self.weights.get(name, 1.0) for name in self.dimensions]


@dataclass
class Backbone:
    """A model to train or score with, its tokenizer, and what will be written beside it."""

    model: nn.Module
    tokenizer: Any
    manifest: Manifest
    readout: Readout | None = None
    support: SupportReadout | None = None
    """Beside the plain head, where the directory has one."""
    language_head: LanguageHead | None = None
    """Where the readout sees log-probabilities."""

    @property
    def renderer(self) -> PromptRenderer:
        """Texts → ids with this model's tokenizer and format."""
        return PromptRenderer(self.tokenizer, self.manifest.prompt_format)


def load_backbone_for_rm(
    base_model: str,
    dimensions: Sequence[str] = DIMENSIONS,
    dtype: torch.dtype | str = "auto",
    *,
    weights: dict[str, float] | None = None,
    max_length: int | None = None,
    rope_parameters: dict[str, Any] | None = None,
    prompt_format: PromptFormat | None = None,
    **load_kwargs: Any,
) -> Backbone:
    """Load a base model as a regression head over ``dimensions``; the head is fresh (see ``level_head``).

    Args:
        base_model: ``smollm2``, a path or a hub name.
        dimensions: output names, in order.
        dtype: of the weights; ``"auto"`` keeps the saved one.
        weights: of the dimensions in the reward.
        max_length: tokens; the model's window when None.
        rope_parameters: changes to the configuration's RoPE (``{"rope_type": "yarn", "factor": 4.0}``); the
            window grows by ``factor``.
        prompt_format: how texts are laid out; from the tokenizer's chat template when None.
        load_kwargs: for ``from_pretrained`` (``quantization_config``, ``device_map``, …).

    Raises:
        UserError: the model cannot be loaded, or ``max_length`` is over its window.
    """
    path = resolve_model(base_model)
    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"could not load the base model '{base_model}': {error}", "give a path or a name that exists"
        ) from error
    if prompt_format is None:
        prompt_format = PromptFormat.from_tokenizer(tokenizer)
    set_pad_token(config, tokenizer, prompt_format)
    if rope_parameters:
        scale_rope(config, rope_parameters)
    config.num_labels = len(dimensions)
    config.id2label = dict(enumerate(dimensions))
    config.label2id = {name: i for i, name in enumerate(dimensions)}
    config.problem_type = "regression"
    window = config.get_text_config().max_position_embeddings
    if max_length is not None and max_length > window:
        raise UserError(
            f"max_length {max_length} is over the window of '{base_model}', {window} tokens",
            hint="lower it, or stretch the window with rope_parameters",
        )
    model = _load_classifier(path, base_model, config, dtype, load_kwargs, fresh_head=True)
    manifest = Manifest(
        dimensions=list(dimensions),
        weights=dict(weights or {}),
        max_length=max_length or window,
        prompt_format=prompt_format,
        base_model=base_model,
        rope_parameters=rope_parameters,
    )
    return Backbone(model, tokenizer, manifest)


def _load_classifier(
    path: Any, name: str, config: Any, dtype: Any, load_kwargs: dict[str, Any], fresh_head: bool
) -> nn.Module:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the report names a fresh head as missing; what is really missing raises below
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True, **load_kwargs
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"could not load '{name}' as a sequence classifier: {error}",
            hint="use a decoder model that AutoModelForSequenceClassification supports",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = {key for key in info["missing_keys"] if not (fresh_head and key == "score.weight")}
    if missing:
        raise UserError(
            f"'{name}' lacks the weights {', '.join(sorted(missing)[:5])}",
            hint="the files are incomplete or of another architecture; save or download the model again",
        )
    score_layer(model)
    return model


def set_pad_token(config: Any, tokenizer: Any, prompt_format: PromptFormat) -> None:
    """Choose a pad token that no answer ends with, in the configuration and the tokenizer.

    Raises:
        UserError: every special token of the tokenizer ends an answer.
    """
    end = tokenizer(prompt_format.end, add_special_tokens=False)["input_ids"][-1]
    special = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    spare = re.compile(r"pad|reserved|unused|endoftext", re.IGNORECASE)
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    candidates += sorted(
        special.values(), key=lambda i: spare.search(tokenizer.convert_ids_to_tokens(i)) is None
    )
    for candidate in candidates:
        if candidate is not None and candidate != end:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(candidate)
            config.get_text_config().pad_token_id = candidate
            config.pad_token_id = candidate
            return
    raise UserError(
        "the tokenizer has no special token to pad with other than the one that ends an answer",
        hint="add a pad token to the base model",
    )


def scale_rope(config: Any, changes: dict[str, Any]) -> None:
    """Apply RoPE changes to a configuration; a ``factor`` stretches the window."""
    text = config.get_text_config()
    parameters = dict(text.rope_parameters or {})
    window = text.max_position_embeddings
    parameters.update(changes)
    if "factor" in changes:
        parameters.setdefault("original_max_position_embeddings", window)
        text.max_position_embeddings = int(parameters["original_max_position_embeddings"] * changes["factor"])
    text.rope_parameters = parameters


def save_reward_model(
    model: nn.Module,
    tokenizer: Any,
    directory: str | Path,
    manifest: Manifest,
    readout: Readout | None = None,
    support: SupportReadout | None = None,
    language_head: LanguageHead | None = None,
) -> None:
    """Write model (or adapter with head), tokenizer, readouts where there are any and, last, the manifest.

    A full model needs none of our code to load. An adapter is completed by ``load_reward_model`` (base model,
    labels, pad token); give other programs the merged model (``merge_adapter``).

    Raises:
        UserError: the disk is full or not writable.
    """
    target = Path(directory)
    path = target / MANIFEST
    packages = ("transformers", "torch", "peft")
    manifest = manifest.model_copy(
        update={
            "adapter": hasattr(model, "peft_config"),
            "readout": readout.spec if readout else None,
            "support": support.spec if support else None,
            "versions": {name: version(name) for name in packages},
        }
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        model.save_pretrained(target)  # type: ignore[operator]
        tokenizer.save_pretrained(target)
        for file, one in ((READOUT_FILE, readout), (SUPPORT_FILE, support)):
            (target / file).unlink(missing_ok=True)
            if one:
                one.save(target)
        (target / HEAD_FILE).unlink(missing_ok=True)
        if language_head:
            language_head.save(target)
        text = json.dumps(manifest.model_dump(), ensure_ascii=False, indent=2)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(error, target) from error


def read_manifest(directory: str | Path) -> Manifest:
    """The manifest of a saved reward model.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{directory} is not a finished reward model: it has no {MANIFEST}",
            hint="give a directory that 'reward-model train' completed",
        )
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "train the model again, or restore the file"
        ) from error


def load_reward_model(
    directory: str | Path,
    dtype: torch.dtype | str = "auto",
    trainable: bool = False,
    with_readout: bool = True,
    **load_kwargs: Any,
) -> Backbone:
    """Load a saved reward model, full or adapter.

    Args:
        directory: what ``save_reward_model`` wrote.
        dtype: of the weights.
        trainable: load an adapter for further training.
        with_readout: load the readout too, where the directory has one.
        load_kwargs: for ``from_pretrained``.

    Raises:
        UserError: the directory, or an adapter's base model, is not there.
    """
    manifest = read_manifest(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise UserError(
            f"could not load the tokenizer in {directory}: {error}", "train the model again"
        ) from error
    readout = Readout.load(directory, manifest.readout) if manifest.readout and with_readout else None
    support = SupportReadout.load(directory, manifest.support) if manifest.support else None
    if not manifest.adapter:
        config = AutoConfig.from_pretrained(directory)
        model = _load_classifier(directory, str(directory), config, dtype, load_kwargs, fresh_head=False)
        likely = readout is not None and readout.spec.log_probs
        head = LanguageHead.load(directory, model) if likely else None
        return Backbone(model, tokenizer, manifest, readout, support, head)
    from peft import PeftModel

    base = load_backbone_for_rm(
        manifest.base_model,
        manifest.dimensions,
        dtype,
        max_length=manifest.max_length,
        rope_parameters=manifest.rope_parameters,
        prompt_format=manifest.prompt_format,
        **load_kwargs,
    )
    model = PeftModel.from_pretrained(base.model, directory, is_trainable=trainable)
    return Backbone(model, tokenizer, manifest, readout, support)


def merge_adapter(model: nn.Module) -> nn.Module:
    """A LoRA model with its adapter and head merged into a plain sequence classifier (unmerged it is unchanged).

    The input model is used up, as PEFT merges in place.
    """
    if not hasattr(model, "merge_and_unload"):
        return unwrap(model)
    return model.merge_and_unload()  # type: ignore[operator]
