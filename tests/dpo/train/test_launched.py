"""A run of two processes is opened, replaced and resumed by both alike."""

from __future__ import annotations

from pathlib import Path

from dpo_helpers import pair_rows, write_jsonl

from tests.torchrun import two_processes

OPENS = """
import sys, time
from pathlib import Path
from accelerate import PartialState
from dpo.train.train import COMMAND, SUMMARY
from dpo.train.train_config import TrainConfig
from reward_model.training.run import is_finished, leave_together, open_run, prepare_process

pairs = Path(sys.argv[1])
config = TrainConfig(pairs=pairs, model="m", output=pairs.parent / "out", device="cpu", existing="replace")
prepare_process(config)
time.sleep(3 * PartialState().process_index)  # the second process comes late to everything
finished = is_finished(config, COMMAND, [pairs], SUMMARY)
time.sleep(3 * PartialState().process_index)
if not finished:
    open_run(config, COMMAND, [pairs])
print("finished" if finished else "anew", (config.output / SUMMARY).exists(), flush=True)
leave_together()
"""


def test_two_processes_agree_that_a_finished_run_is_replaced(tmp_path: Path):
    from dpo.train.train import COMMAND, SUMMARY
    from dpo.train.train_config import TrainConfig
    from reward_model.training.run import open_run

    pairs, output = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2)), tmp_path / "out"
    config = TrainConfig(pairs=pairs, model="m", output=output, device="cpu")
    open_run(config, COMMAND, [pairs])
    (output / SUMMARY).write_text("{}")
    script = tmp_path / "opens.py"
    script.write_text(OPENS)
    done = two_processes(script, pairs, timeout=120)
    assert done.stdout.split("\n")[:2] == ["anew False"] * 2
