"""Rules of the house that a reader relies on: one import direction, a complete wheel, commands that explain themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from judge_pipeline.common.config import leaves

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


def commands_of(program):
    if program == "judge-pipeline":
        from judge_pipeline.cli import COMMANDS, main

        return COMMANDS, main
    if program == "reward-model":
        from reward_model.cli import commands, main

        return commands(), main
    from dpo.cli import COMMANDS, main

    return COMMANDS, main


PROGRAMS = ("judge-pipeline", "reward-model", "dpo")


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_name_version_commands_and_mistakes(program, capsys):
    commands, main = commands_of(program)
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as stop:
            main([flag])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert program in text
    assert all(command.name in text for command in commands)
    with pytest.raises(SystemExit) as stop:
        main(["no-such-command"])
    assert stop.value.code == 2
    assert commands[0].name in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_subcommand_has_an_example_and_describes_its_settings(program):
    for command in commands_of(program)[0]:
        assert command.example.startswith(f"{program} {command.name}")
        assert command.help
        undescribed = [leaf.dotted for leaf in leaves(command.config) if not leaf.field.description]
        assert undescribed == [], command.name


def test_the_installed_commands_are_the_ones_promised():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(scripts) == set(PROGRAMS)
    folder = Path(sys.executable).parent
    done = subprocess.run([folder / "dpo", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("dpo "), done.stderr
