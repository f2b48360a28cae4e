"""Rules of the house that a reader relies on: one import direction, a complete wheel, commands that explain themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("judge_pipeline", "reward_model", "dpo")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_have_one_direction(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    against = {str(path): imported_rooms(path) - allowed for path in (ROOT / room).rglob("*.py")}
    assert {path: names for path, names in against.items() if names} == {}


@pytest.mark.parametrize("program", ["judge-pipeline", "reward-model", "dpo"])
def test_commands_explain_themselves(program):
    module = program.replace("-", "_")

    def run(*argv):
        code = f"import sys; from {module}.cli import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=ROOT)

    done = run("--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(program)
    overview = run("--help").stdout
    subcommands = overview.split("COMMAND")[-1].split()
    assert subcommands
    done = run("no-such-command")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_every_subcommand_has_an_example_and_states_its_defaults():
    from dpo.cli import COMMANDS as DPO
    from judge_pipeline.cli import COMMANDS as JUDGE
    from judge_pipeline.config import leaves
    from reward_model.cli import COMMANDS as REWARD

    for program, commands in (("judge-pipeline", JUDGE), ("reward-model", REWARD), ("dpo", DPO)):
        for command in commands:
            assert command.example.startswith(f"{program} {command.name}"), command.name
            assert command.help, command.name
            undescribed = [leaf.dotted for leaf in leaves(command.config) if not leaf.field.description]
            assert undescribed == [], f"{program} {command.name}"
