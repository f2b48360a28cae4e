"""`reward-model train`: from labels to a model directory that plain transformers loads.

In: labels and their prompts, a base model. Out: `DIR` with config, safetensors, tokenizer, `run.yaml`,
`metrics.jsonl`, `README.md` and, last, `reward_model.json`, whose presence means the model is complete. A run that
was stopped goes on from its last whole checkpoint and ends in the same weights.

Deviation from the paper: LongReward asks the judge for every reward; this room distils the judge into a model.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.optional_packages import INSTALL_LINES
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.run_dir import prepare_run
from reward_model.data.batches import over_budget, token_batches
from reward_model.modeling.model import MANIFEST, Backbone
from reward_model.shared_prefix.interface import unwrap
from reward_model.training.callbacks import EarlyStop, MetricsFile, ProgressLine, StopOnInterrupt
from reward_model.training.finish import CHECKPOINTS, finish
from reward_model.training.guards import TRAINING_KNOBS, explain_out_of_memory
from reward_model.training.objective import Objective
from reward_model.training.run_data import EncodedData, TrainingData, encode_data, make_objective, read_data
from reward_model.training.train_config import DEFAULT_BUDGET, TrainConfig
from reward_model.training.trainable import build_backbone, share_prefix, start_head
from reward_model.training.trainer import RewardTrainer


def warmup_steps(config: TrainConfig, batches: int) -> int:
    """Whole warm-up steps in the share asked for. The Trainer would round up, and the first step of a warm-up
    has a learning rate of 0: of a run of three steps one would be lost."""
    steps = math.ceil(batches / (PartialState().num_processes * config.accumulation))
    return int(config.warmup * steps * config.epochs)


def training_arguments(config: TrainConfig, has_held_out: bool, warmup: int) -> TrainingArguments:
    """Our settings as the Trainer's."""
    every = "steps" if config.eval_steps else "epoch"
    return TrainingArguments(
        output_dir=str(config.output / CHECKPOINTS),
        per_device_train_batch_size=1,  # one packed sequence; its size is the token budget
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.resolved_learning_rate(),
        lr_scheduler_type="cosine",
        warmup_steps=warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.resolved_bf16(),
        use_cpu=config.device == "cpu"
        or not torch.accelerator.is_available(),  # bf16 runs on CPU when it is named
        eval_strategy=every if has_held_out else "no",
        save_strategy=every,
        eval_steps=config.eval_steps,
        save_steps=config.eval_steps or 500,
        save_total_limit=2,
        load_best_model_at_end=has_held_out,
        metric_for_best_model="loss" if has_held_out else None,
        greater_is_better=False if has_held_out else None,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,  # a loss that is not finite must stop the run, not be hidden
        include_num_input_tokens_seen="all",
        report_to="none" if config.report_to == "tensorboard" else config.report_to,
        project="reward-model",  # trackio's
        run_name=config.output.name,
        seed=config.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        save_only_model=False,
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the Trainer's state is its last file."""
    whole = [item.parent for item in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda item: int(item.name.rpartition("-")[2]), default=None)


def check_tracker(name: str) -> None:
    """Raise UserError when the tracker asked for is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--report-to {name}: {name} is not installed", INSTALL_LINES[name])


def tensorboard(folder: Path) -> TrainerCallback:
    """TensorBoard's files in a folder that stays; the Trainer would put them among the checkpoints."""
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback


def say(*parts: object) -> None:
    """A line for the user, from the first process only."""
    if PartialState().is_main_process:
        print(*parts, file=sys.stderr, flush=True)


def train(config: TrainConfig) -> Path:
    """Train and save a reward model; returns its directory.

    Raises:
        UserError: bad input, a loss that is not finite, out of memory; what was finished is kept.
        KeyboardInterrupt: stopped by the user, after a checkpoint.
    """
    check_tracker(config.report_to)
    quiet_libraries()
    state = PartialState(cpu=config.device == "cpu")
    data = read_data(config)
    if (config.output / MANIFEST).is_file():
        _open_run(config, data, state)
        if (config.output / MANIFEST).is_file():
            say(f"{config.output} is a finished model of this configuration: nothing to do")
            return config.output
    set_seed(config.seed)
    weights = {name: config.weights.get(name, 1.0) for name in data.dimensions}
    backbone = build_backbone(config, data.dimensions, weights)
    objective = make_objective(config, data, backbone.manifest.weight_list())
    encoded = encode_data(config, data, backbone)
    _open_run(config, data, state)  # only now: what was refused above leaves no run behind
    with StopOnInterrupt() as stop, explain_out_of_memory("training", TRAINING_KNOBS):
        trainer = fit(config, data, backbone, objective, encoded, stop)
        if stop.interrupted:
            raise KeyboardInterrupt
        finish(config, data, backbone, objective, trainer, encoded)
    say(f"saved {config.output}")
    return config.output


def _open_run(config: TrainConfig, data: TrainingData, state: PartialState) -> None:
    """Write run.yaml, or meet the run that is there, on the first process."""
    if state.is_main_process:
        prepare_run(config.output, config, "reward-model train", config.existing, inputs=data.sources)
    state.wait_for_everyone()


def fit(
    config: TrainConfig,
    data: TrainingData,
    backbone: Backbone,
    objective: Objective,
    encoded: EncodedData,
    stop: StopOnInterrupt,
) -> RewardTrainer:
    """Run the Trainer from the start or from the last checkpoint; the best weights are in the model afterwards."""
    train_items, held_out = encoded.train, encoded.held_out
    budget = config.token_budget or DEFAULT_BUDGET
    checkpoint = last_checkpoint(config.output / CHECKPOINTS)
    if config.shared_prefix == "on":
        share_prefix(backbone.model)
    start = (
        f"going on from {checkpoint.name}"
        if checkpoint
        else start_head(backbone, train_items, config, budget)
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
    callbacks: list[Any] = [MetricsFile(config.output / "metrics.jsonl"), ProgressLine(), stop]
    if config.early_stopping and held_out:
        callbacks.append(EarlyStop(config.early_stopping))
    if config.report_to == "tensorboard":
        callbacks.append(tensorboard(config.output / "tensorboard"))
    trainer = RewardTrainer(
        backbone.model,
        training_arguments(
            config, bool(held_out), warmup_steps(config, len(token_batches(train_items, budget)))
        ),
        train=train_items,
        held_out=held_out,
        objective=objective,
        dimensions=data.dimensions,
        token_budget=budget,
        shared_prefix=config.shared_prefix == "on",
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer
