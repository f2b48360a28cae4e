"""A signal that reaches one process of several stops all of them, at the same step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
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
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
    ]
    launcher += ["--rdzv-endpoint", "localhost:0", str(script)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
