"""`reward-model train`: from labels to a model directory that plain transformers loads.

In: labels and their prompts, a base model. First a probe of the frozen model is fitted in closed form: with `--method
probe` it is the model, otherwise training starts from it and has to beat it on held-out documents. Out: `DIR` with config, safetensors, tokenizer, `run.yaml`,
`metrics.jsonl`, `README.md` and, last, `reward_model.json`, whose presence means the model is complete. A run that
was stopped goes on from its last whole checkpoint and ends in the same weights.

Deviation from the paper: LongReward asks the judge for every reward; this package distils the judge into a model.
"""

from __future__ import annotations

import math
from pathlib import Path

from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from reward_model.data.batches import orders_answers, over_budget, passes_per_step
from reward_model.modeling.model import MANIFEST, Backbone
from reward_model.shared_prefix.interface import unwrap
from reward_model.training.callbacks import EarlyStop, StopOnInterrupt
from reward_model.training.export import export, export_probe
from reward_model.training.guards import TRAINING_KNOBS, explain_out_of_memory, say
from reward_model.training.objective import Objective
from reward_model.training.probe_run import ProbeResult, run_probe
from reward_model.training.run import (
    is_finished,
    last_checkpoint,
    leave_together,
    open_run,
    prepare_process,
    run_trainer,
)
from reward_model.training.run_data import EncodedData, TrainingData, encode_data, make_objective, read_data
from reward_model.training.sharding import share_prefix
from reward_model.training.train_config import DEFAULT_BUDGET, TrainConfig
from reward_model.training.trainable import build_backbone, head_start, probe_starts, start_head
from reward_model.training.trainer import RewardTrainer

COMMAND = "reward-model train"


def run(config: TrainConfig) -> int:
    """The command: train, and leave together with the run's other processes."""
    train(config)
    leave_together()
    return 0


def training_arguments(
    config: TrainConfig, has_held_out: bool, accumulation: int | None = None, has_order: bool = True
) -> TrainingArguments:
    """Our settings as the Trainer's.

    Args:
        config: settings.
        has_held_out: whether there is something to measure.
        accumulation: passes of a step; by default as the settings say.
        has_order: whether held-out targets order any two answers; else the loss tells which checkpoint is best.
    """
    best_metric = "choice" if config.best_metric == "pair_accuracy" and has_order else "loss"
    return TrainingArguments(
        **config.trainer_arguments(has_held_out),
        per_device_train_batch_size=1,  # one packed sequence; its size is the token budget
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=accumulation or config.accumulation,
        num_train_epochs=config.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        save_strategy="steps" if config.eval_steps else "epoch",
        save_steps=config.eval_steps or 500,
        load_best_model_at_end=has_held_out,
        metric_for_best_model=best_metric if has_held_out else None,
        greater_is_better=best_metric != "loss" if has_held_out else None,
        logging_steps=config.log_steps,
        include_num_input_tokens_seen="all",
        project="reward-model",  # trackio's
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )


def train(config: TrainConfig) -> Path:
    """Train and save a reward model; returns its directory.

    Raises:
        UserError: bad input, a loss that is not finite, out of memory; what was finished is kept.
        KeyboardInterrupt: stopped by the user, after a checkpoint.
    """
    prepare_process(config)
    data = read_data(config)
    if is_finished(config, COMMAND, data.sources, MANIFEST):
        say(f"{config.output} is a finished model of this configuration: nothing to do")
        return config.output
    if config.augment:
        say(data.augmented.describe())
    set_seed(config.seed)
    weights = {name: config.weights.get(name, 1.0) for name in data.dimensions}
    backbone = build_backbone(config, data.dimensions, weights)
    objective = make_objective(config, data, backbone.manifest.weight_list())
    encoded = encode_data(config, data, backbone)
    open_run(config, COMMAND, data.sources)  # only now: what was refused above leaves no run behind
    with explain_out_of_memory("training", TRAINING_KNOBS):
        if config.shared_prefix == "on":
            share_prefix(backbone.model)
        probe = run_probe(config, data, backbone, objective, encoded) if probe_starts(config) else None
        if config.method == "probe":
            export_probe(config, data, backbone, objective, encoded, probe)
        else:
            with StopOnInterrupt() as stop:
                trainer = build_trainer(config, data, backbone, objective, encoded, probe)
                early = (
                    [EarlyStop(config.early_stopping)] if config.early_stopping and encoded.held_out else []
                )
                run_trainer(trainer, config, stop, early)
                export(config, data, backbone, objective, trainer, encoded, probe)
    say(f"saved {config.output}")
    return config.output


def build_trainer(
    config: TrainConfig,
    data: TrainingData,
    backbone: Backbone,
    objective: Objective,
    encoded: EncodedData,
    probe: ProbeResult | None,
) -> RewardTrainer:
    """The Trainer of a run, whose head is started unless a checkpoint will be loaded; says what there is."""
    train_items, held_out = encoded.train, encoded.held_out
    budget = config.token_budget or DEFAULT_BUDGET
    checkpoint = last_checkpoint(config.checkpoints)
    if checkpoint:
        start, split = f"going on from {checkpoint.name}", None  # the checkpoint's optimiser has it
    else:
        start, split = start_head(backbone, train_items, config, budget, probe)
    head = head_start(config, backbone, objective, split, probe is not None)
    per_step, passes = config.resolved_prompts_per_step(len(train_items)), None
    if per_step:
        passes = passes_per_step(
            train_items,
            per_step,
            budget,
            seed=config.seed,
            epochs=math.ceil(config.epochs),
            world=PartialState().num_processes,
        )
    answers = sum(len(item.answers) for item in train_items)
    trainable = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    say(
        f"{len(train_items)} prompts, {answers} answers; {len(held_out)} prompts held out"
        + (f"; {encoded.skipped} over the window left out" if encoded.skipped else "")
        + f"; {trainable / 1e6:.1f}M trainable weights; {start}"
    )
    if config.resolved_checkpointing():
        unwrap(backbone.model).gradient_checkpointing_enable({"use_reentrant": False})
    if big := over_budget(train_items, budget):
        longest = max(train_items[index].shape.total for index in big)
        say(
            f"{len(big)} prompts over the token budget of {budget} are sequences of their own, up to {longest}"
        )
    return RewardTrainer(
        backbone.model,
        training_arguments(config, bool(held_out), passes, any(map(orders_answers, held_out))),
        train=train_items,
        held_out=held_out,
        objective=objective,
        dimensions=data.dimensions,
        token_budget=budget,
        shared_prefix=config.shared_prefix == "on",
        prompts_per_step=per_step,
        head=head,
    )
