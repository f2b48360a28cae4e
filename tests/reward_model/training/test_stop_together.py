"""A signal that reaches one process of several stops all of them, at the same step."""

from __future__ import annotations

from pathlib import Path

from tests.torchrun import two_processes

STOPS = """
import signal
from accelerate import PartialState
from transformers import TrainerControl, TrainerState
from reward_model.training.callbacks import StopOnInterrupt

rank = PartialState(cpu=True).process_index
stop, state, control = StopOnInterrupt(), TrainerState(), TrainerControl()
with stop:
    if rank == 0:
        signal.raise_signal(signal.SIGTERM)
    stop.on_step_end(None, state, control)
    assert control.should_training_stop, f"rank {rank} would go on and wait for the other one for ever"
    assert stop.interrupted
    if rank == 1:  # the launcher's signal comes late here: it is this process's first, not its second
        signal.raise_signal(signal.SIGTERM)
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
"""


def test_a_signal_that_reaches_one_process_stops_all(tmp_path: Path):
    script = tmp_path / "stops.py"
    script.write_text(STOPS)
    two_processes(script)
