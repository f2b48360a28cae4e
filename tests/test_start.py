"""What the commands load before they run: `--help` answers at once because nothing that is slow is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = ("accelerate", "datasets", "pandas", "peft", "scipy", "sklearn", "torch", "transformers", "trl")
ALL_HELP = """
import contextlib, importlib, io, sys
cli = importlib.import_module(sys.argv[1])
for words in ([], *([command.name] for command in cli.COMMANDS)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        cli.main([*words, "--help"])
    assert "usage: " in shown.getvalue(), words
    print(*words, *sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


@pytest.mark.parametrize("package", ["judge_pipeline", "reward_model", "dpo"])
def test_help_loads_nothing_that_is_slow_to_import(package: str):
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP, f"{package}.cli", *SLOW], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert not set(line.split()) & set(SLOW), line
