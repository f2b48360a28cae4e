"""The lock of a run directory: one holder, who is named; a killed one holds nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.run_lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from judge_pipeline.common.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_kept_out_until_the_first_is_gone(tmp_path):
    run = tmp_path / "new" / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on ") as caught, locked(run):
        pass
    assert "--output" in caught.value.hint
    holder.kill()
    holder.wait()
    with locked(run):
        pass
