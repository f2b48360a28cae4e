"""What happens beside a training step: the metrics file, the progress line, a clean stop.

In: the Trainer's events. Out: a stop where nothing gets better, `metrics.jsonl` (a line a log or evaluation), progress on the terminal, and a
checkpoint when the user presses Ctrl-C, so that the next run goes on from there.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import types
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.integrations import TensorBoardCallback

from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import JsonlAppender, write_records


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl`: `step`, `epoch`, and `loss`… or `eval_…`.

    A resumed run goes on from its checkpoint: lines of steps beyond it, which will be made again, are dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: JsonlAppender | None = None

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Open the file, without the lines of a run that this one does not go on from."""
        if not state.is_world_process_zero:
            return
        kept = [
            row for row in read_metrics(self.path) if row["step"] <= state.global_step and state.global_step
        ]
        write_records(self.path, kept)
        self._file = JsonlAppender(self.path)

    def on_log(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Write one line."""
        if self._file is not None:
            self._file.append({"step": state.global_step, **kwargs.get("logs", {})})

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a torn last line of a killed run is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def tensorboard(folder: Path) -> TrainerCallback:
    """TensorBoard's files in a folder that stays; the Trainer would put them among the checkpoints."""
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback


class EarlyStop(EarlyStoppingCallback):
    """Stops after `patience` evaluations without a better one; a resumed run counts those before its checkpoint.

    A run that was to stop, and was killed before its model was saved, takes one step (the Trainer cannot take none),
    which is neither measured nor saved: the best checkpoint stays the best.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(patience)
        self._over = False

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Count what the checkpoint's log tells."""
        super().on_train_begin(args, state, control, **kwargs)
        name, sign = f"eval_{args.metric_for_best_model}", 1 if args.greater_is_better else -1
        best = -math.inf
        self.early_stopping_patience_counter = 0
        for value in (sign * row[name] for row in state.log_history if name in row):
            worse = self.early_stopping_patience_counter + 1
            self.early_stopping_patience_counter, best = (0, value) if value > best else (worse, best)
        self._over = self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """End a run that was over."""
        if self._over:
            control.should_training_stop = True
            control.should_save = control.should_evaluate = control.should_log = False

    on_epoch_end = on_step_end


class ProgressLine(TrainerCallback):
    """Steps done, loss and time left."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._info: dict[str, str] = {}

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Start counting where the run starts."""
        if state.is_world_process_zero:
            self._progress = Progress(state.max_steps, "training", "steps", done=state.global_step)

    def on_log(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Remember the latest losses."""
        logs = kwargs.get("logs", {})
        shown = {"loss": "loss", "eval_loss": "held-out", "eval_reward_spearman": "ρ"}
        self._info |= {short: f"{logs[name]:.3f}" for name, short in shown.items() if name in logs}

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Count a step."""
        if self._progress is not None:
            self._progress.update(1, **self._info)

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Say how long it took."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C (or SIGTERM) ends the run after its step with a checkpoint; a second one ends it at once.

    With several processes a signal may reach each in another step, or only one of them: after every step they agree
    on whether any was told to stop, so that all stop at the same one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.interrupted = False
        """Whether any process was told to stop, as all of them know it."""
        self._signalled = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnInterrupt:
        # Only the main thread may take signals; in another one the program around us deals with them.
        for number in self.SIGNALS if threading.current_thread() is threading.main_thread() else ():
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        if PartialState().num_processes == 1:
            self.interrupted = True

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Save and stop when a signal came to any process."""
        if PartialState().num_processes > 1:
            told = torch.tensor([int(self._signalled)], device=PartialState().device)
            self.interrupted = bool(reduce(told, reduction="sum").item())
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """The Trainer takes a stop for the end of an epoch: in the middle of one, nothing is measured or saved
        again, so that the run that goes on finds the random numbers as they were."""
        if self.interrupted and not float(state.epoch or 0.0).is_integer():
            control.should_save = control.should_evaluate = control.should_log = False
