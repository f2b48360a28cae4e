"""The end of a training run: measure, write the model directory, its card and, last, its manifest.

In: a trained Trainer. Out: `DIR` as plain transformers loads it; for adapters also `DIR/adapter`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from torch import nn

from judge_pipeline.common.errors import UserError, disk_error
from judge_pipeline.common.record_files import write_text
from reward_model.data.splits import document_digests
from reward_model.modeling.language_head import LanguageHead
from reward_model.modeling.model import (
    Backbone,
    load_backbone_for_rm,
    load_reward_model,
    merge_adapter,
    save_reward_model,
)
from reward_model.modeling.model_card import CardFacts, render_card
from reward_model.modeling.stack_spec import StackSpec
from reward_model.modeling.support import SupportReadout
from reward_model.training.adapters import compute_dtype
from reward_model.training.guards import say
from reward_model.training.keep_probe import (
    probe_metrics,
    probe_section,
    probe_wins,
    untouched,
    verdict,
    write_metrics,
    write_report,
)
from reward_model.training.metrics import moving_together
from reward_model.training.objective import Objective
from reward_model.training.probe_run import ProbeResult
from reward_model.training.run_data import EncodedData, TrainingData
from reward_model.training.sharding import weights_are_sharded
from reward_model.training.support import trained_support
from reward_model.training.train_config import TrainConfig
from reward_model.training.trainer import RewardTrainer

ADAPTER = "adapter"


def export(
    config: TrainConfig,
    data: TrainingData,
    backbone: Backbone,
    objective: Objective,
    trainer: RewardTrainer,
    encoded: EncodedData,
    probe: ProbeResult | None = None,
) -> None:
    """Measure on held-out documents, save the model with its card, manifest last, and drop the checkpoints.

    Where training did not beat the probe it started from, the probe is saved in its place.
    """
    metrics = trainer.evaluate() if encoded.held_out else {}
    notes = [verdict(config, metrics, probe)] if probe else []
    if probe and probe_wins(metrics, probe):
        export_probe(config, data, backbone, objective, encoded, probe, notes)
        return
    notes += moving_together(metrics)
    note_training(data, backbone, objective, encoded)
    trained = gathered_model(config, backbone, trainer)
    if PartialState().is_main_process:
        for note in notes:
            say(note)
        facts = card_facts(config, data, backbone, objective, metrics, encoded)
        facts = replace(facts, notes=[*facts.notes, *notes])
        support = trained_support(config, data, backbone, trained, None, say)
        save(config, backbone, trained, render_card(with_support(facts, support)), support)
    finish(config)


def export_probe(
    config: TrainConfig,
    data: TrainingData,
    backbone: Backbone,
    objective: Objective,
    encoded: EncodedData,
    probe: ProbeResult | None,
    notes: Sequence[str] = (),
) -> None:
    """Save the probe as the run's model: untouched base weights, the taught head, the readout.

    Raises:
        UserError: there is none, because the weights are sharded.
    """
    if probe is None:
        raise UserError("--method probe cannot read a model that ZeRO-3 shards", "run it without DeepSpeed")
    note_training(data, backbone, objective, encoded)
    if PartialState().is_main_process:
        output, metrics = config.output, probe_metrics(probe)
        facts = card_facts(config, data, backbone, objective, metrics, encoded)
        for note in (notes := [*notes, *moving_together(metrics)]):
            say(note)
        facts = replace(facts, readouts=probe_section(probe), notes=[*facts.notes, *notes])
        if "stack" in probe.report:
            spec = StackSpec.model_validate(probe.report["stack"])
            manifest = backbone.manifest.model_copy(update={"stack": spec if spec.outputs else None})
            backbone.manifest = manifest
        if config.method == "probe":
            write_metrics(output, probe)
        write_report(output, probe)
        model = untouched(config, backbone, probe)
        support = trained_support(config, data, backbone, model, probe.readout.spec, say)
        facts = with_support(facts, support)
        write_text(output / "README.md", render_card(facts))
        likely = probe.readout.spec.log_probs
        head = LanguageHead.of_base(model, config.base_model) if likely else None
        manifest = backbone.manifest
        save_reward_model(model, backbone.tokenizer, output, manifest, probe.readout, support, head)
    finish(config)


def note_training(data: TrainingData, backbone: Backbone, objective: Objective, encoded: EncodedData) -> None:
    """What was trained on goes into the manifest: the documents, and mean and spread of their labels."""
    read = {item.prompt_id for item in (*encoded.train, *encoded.unlabelled)}
    documents = document_digests(item for item in (*data.train, *data.unlabelled) if item.prompt_id in read)
    backbone.manifest = backbone.manifest.model_copy(update={"trained_documents": documents})
    if not data.preferences:
        spread = objective.standardizer
        backbone.manifest = backbone.manifest.model_copy(
            update={
                "training_mean": dict(zip(data.dimensions, spread.mean_D.tolist(), strict=True)),
                "training_std": dict(zip(data.dimensions, spread.std_D.tolist(), strict=True)),
            }
        )


def finish(config: TrainConfig) -> None:
    """Drop the checkpoints of a model that is saved."""
    if PartialState().is_main_process and not config.keep_checkpoints:
        shutil.rmtree(config.checkpoints, ignore_errors=True)
    PartialState().wait_for_everyone()


def gathered_model(config: TrainConfig, backbone: Backbone, trainer: RewardTrainer) -> nn.Module:
    """The trained model whole on the first process; where weights are sharded, by way of a file."""
    if not weights_are_sharded():
        return backbone.model
    folder = config.checkpoints / "whole"
    trainer.save_model(str(folder))
    if not PartialState().is_main_process:
        return backbone.model
    dimensions = backbone.manifest.dimensions
    if config.method == "full":
        backbone.tokenizer.save_pretrained(folder)
        return load_backbone_for_rm(str(folder), dimensions, torch.float32).model
    base = load_backbone_for_rm(
        config.base_model, dimensions, compute_dtype(config), rope_parameters=config.rope_parameters()
    )
    return PeftModel.from_pretrained(base.model, folder)


def with_support(facts: CardFacts, support: SupportReadout | None) -> CardFacts:
    """The card's facts with a line on what `--explain` is worth."""
    if support is None:
        return facts
    note = f"`reward-model score --explain`: {support.spec.describe()}"
    return replace(facts, notes=[*facts.notes, note])


def save(
    config: TrainConfig,
    backbone: Backbone,
    trained: nn.Module,
    card: str,
    support: SupportReadout | None = None,
) -> None:
    """Write the model directory; an adapter goes with its head to `adapter/`, merged weights beside it."""
    output, tokenizer, manifest = config.output, backbone.tokenizer, backbone.manifest
    try:
        if config.method == "full" or not config.merge:
            write_text(output / "README.md", card)
            save_reward_model(trained, tokenizer, output, manifest, support=support)
            write_text(output / "README.md", card)  # PEFT puts a card of its own in this place
            return
        save_reward_model(trained, tokenizer, output / ADAPTER, manifest, support=support)
        write_text(output / "README.md", card)
        # Merged into freshly loaded weights: those in memory may be quantized or sharded.
        merged = merge_adapter(load_reward_model(output / ADAPTER, compute_dtype(config)).model)
        save_reward_model(merged, tokenizer, output, manifest, support=support)
    except OSError as error:
        raise disk_error(error, output) from error


def card_facts(
    config: TrainConfig,
    data: TrainingData,
    backbone: Backbone,
    objective: Objective,
    metrics: dict[str, float],
    encoded: EncodedData,
) -> CardFacts:
    """What the model card tells."""
    train_items, held_out, examples = encoded.train, encoded.held_out, data.held_out
    if config.folds:
        held_out, examples = train_items, data.train
    standardizer = objective.standardizer
    constant: dict[str, float] = {}
    if held_out and not data.preferences:
        targets = np.concatenate([item.targets_N_D for item in held_out])
        errors = np.abs(targets - standardizer.mean_D.numpy())
        for name, column in zip(data.dimensions, errors.T, strict=True):
            if not np.isnan(column).all():
                constant[name] = float(np.nanmean(column))
    training = {
        "loss": objective.name,
        "epochs": config.epochs,
        "learning rate": config.resolved_learning_rate(),
    }
    settings = {
        "method": config.method,
        **({} if config.method == "probe" else training),
        "precision": "bf16" if config.resolved_bf16() else "fp32",
        "seed": config.seed,
        **({"folds over documents that the figures are from": config.folds} if config.folds else {}),
    }
    return CardFacts(
        manifest=backbone.manifest,
        metrics=metrics,
        constant_mae=constant,
        train_prompts=len(train_items),
        train_answers=sum(len(item.answers) for item in train_items),
        held_out_prompts=len(held_out),
        held_out_documents=len({item.document_id for item in examples}),
        settings=settings,
        notes=[f"{encoded.skipped} prompts over the window were left out"] if encoded.skipped else [],
    )
