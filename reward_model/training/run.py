"""A training run from its opening to its end, on one process or several: what both trainers need around theirs.

In: settings and a Trainer. Out: a run directory that a stopped run goes on in, `metrics.jsonl`, a progress line.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.optional_packages import INSTALL_LINES
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.run_dir import file_digest, other_configuration, prepare_run, read_run_yaml
from reward_model.training.callbacks import MetricsFile, ProgressLine, StopOnInterrupt, tensorboard
from reward_model.training.guards import say
from reward_model.training.settings import TrainingSettings


class GuardedTrainer(Trainer):
    """A Trainer that stops where a loss or a gradient is not finite, and whose warm-up takes no whole run."""

    step_names: Sequence[str] = ()
    """What the batches of the optimiser step under way are called, for messages."""

    def check_finite(self, value: Tensor, what: str, names: Sequence[str] | None = None) -> None:
        """Raise UserError where a value is NaN or infinite; transformers would log earlier losses instead."""
        if torch.isfinite(value.detach()).all():
            return
        names = self.step_names if names is None else names
        where = f", in the batch of prompts: {', '.join(names)}" if names else ""
        raise UserError(
            f"the {what} is {value.detach().float().mean().item()} at step {self.state.global_step + 1}{where}",
            "lower --learning-rate, train with --precision fp32, or look at these prompts; the last "
            "checkpoint is kept",
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None:
            self.check_finite(torch.as_tensor(norm), "gradient")
        return norm

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Whole warm-up steps in the share asked for. The Trainer would round up, and the first step of a warm-up
        has a learning rate of 0: of a run of three steps one would be lost."""
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = int(self.args.warmup_steps * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)


def prepare_process(config: TrainingSettings) -> None:
    """Check the tracker, silence the libraries and join the run's other processes.

    Raises:
        UserError: the tracker asked for is not installed.
    """
    name = config.report_to
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--report-to {name}: {name} is not installed", INSTALL_LINES[name])
    quiet_libraries()
    PartialState(cpu=config.device == "cpu")


def open_run(config: TrainingSettings, command: str, inputs: Sequence[Path]) -> bool:
    """Write run.yaml, or meet the run that is there, on the first process; whether that one is resumed.

    Raises:
        UserError: the directory holds another run and `existing` is "refuse", or checkpoints of other inputs.
    """
    state, resuming = PartialState(), False
    if state.is_main_process:
        if config.existing == "resume":
            _refuse_other_content(config, inputs)
        resuming = prepare_run(config.output, config, command, config.existing, inputs)
    state.wait_for_everyone()
    return resuming


def _refuse_other_content(config: TrainingSettings, inputs: Sequence[Path]) -> None:
    """A checkpoint of other inputs is not gone on from: no run.yaml could say what such a model was trained on."""
    checkpoint = last_checkpoint(config.checkpoints)
    if checkpoint is None or not (config.output / "run.yaml").is_file():
        return
    known = set((read_run_yaml(config.output).get("inputs") or {}).values())
    other = [str(path) for path in inputs if file_digest(path) not in known]
    if other:
        raise UserError(
            f"{config.output}: {checkpoint.name} was trained on other content than {', '.join(other)} has now",
            "put the file back as it was, start anew with --existing replace, or name another --output",
        )


def is_finished(
    config: TrainingSettings,
    command: str,
    inputs: Sequence[Path],
    last_file: str,
    hint: str = "train anew with --existing replace, or name another --output",
) -> bool:
    """Whether the run is complete: its last file is there, and it is not to be replaced. It stays as it is.

    Raises:
        UserError: it is complete, and of other settings or inputs; `hint` says what to do.
    """
    if not (config.output / last_file).is_file():
        return False
    state = PartialState()
    state.wait_for_everyone()  # all have looked before one may delete it
    if config.existing == "replace":
        open_run(config, command, inputs)
        return False
    if state.is_main_process and (lines := other_configuration(config.output, config, command, inputs)):
        raise UserError(
            f"{config.output} is finished, and was of another configuration:\n  " + "\n  ".join(lines), hint
        )
    state.wait_for_everyone()
    return True


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the Trainer's state is its last file."""
    whole = [item.parent for item in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda item: int(item.name.rpartition("-")[2]), default=None)


def run_trainer(
    trainer: Trainer,
    config: TrainingSettings,
    stop: StopOnInterrupt,
    more_callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train from the start or from the last checkpoint.

    Raises:
        KeyboardInterrupt: stopped by the user, after a checkpoint.
    """
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl and the progress line say it
    callbacks = [MetricsFile(config.output / "metrics.jsonl"), ProgressLine(), stop, *more_callbacks]
    if config.report_to == "tensorboard":
        callbacks.append(tensorboard(config.output / "tensorboard"))
    for callback in callbacks:
        trainer.add_callback(callback)
    checkpoint = last_checkpoint(config.checkpoints)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.interrupted:
        say(f"stopped at step {trainer.state.global_step}, after a checkpoint")
        leave_together()
        raise KeyboardInterrupt


def leave_together() -> None:
    """Wait for the other processes of this run, if there are any, and close what connects them.

    A process that ends while a peer still talks to it is an error to the peer; gloo aborts, NCCL warns of a leak.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
