"""Every subcommand of the three commands: its help states each default and an example that would be understood."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dpo import cli as dpo_cli
from judge_pipeline import __version__
from judge_pipeline import cli as judge_cli
from judge_pipeline.common.config import Command, build_parser, leaves
from reward_model import cli as reward_cli
from scripts.structure import PACKAGES

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    "judge-pipeline": (judge_cli.main, judge_cli.COMMANDS),
    "reward-model": (reward_cli.main, reward_cli.COMMANDS),
    "dpo": (dpo_cli.main, dpo_cli.COMMANDS),
}
COMMANDS = [(prog, command) for prog, (_, commands) in PROGRAMS.items() for command in commands]
READMES = [ROOT / "README.md", *(ROOT / package / "README.md" for package in PACKAGES)]
IDS = [f"{prog} {command.name}" for prog, command in COMMANDS]


@pytest.mark.parametrize("prog", PROGRAMS)
def test_programs_name_version_commands_and_mistakes(prog: str, capsys: pytest.CaptureFixture[str]):
    main, commands = PROGRAMS[prog]
    printed = {}
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as ended:
            main([flag])
        assert ended.value.code == 0
        printed[flag] = capsys.readouterr().out
    assert printed["--version"] == f"{prog} {__version__}\n"
    assert all(command.name in printed["--help"] for command in commands)
    with pytest.raises(SystemExit) as ended:
        main(["no-such-command"])
    assert ended.value.code == 2
    assert commands[0].name in capsys.readouterr().err


def test_the_installed_commands_are_the_ones_promised():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(scripts) == set(PROGRAMS)
    done = subprocess.run([Path(sys.executable).parent / "dpo", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("dpo "), done.stderr


@pytest.mark.parametrize(("prog", "command"), COMMANDS, ids=IDS)
def test_help_states_what_each_setting_is_and_its_default(
    prog: str, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "500")  # narrow lines are broken at hyphens
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[prog][0]([command.name, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    subparsers = next(iter(build_parser(prog, "", [command])._subparsers._group_actions))
    settings = [action for action in subparsers.choices[command.name]._actions if action.dest != "help"]
    assert {action.dest for action in settings} == {
        "config",
        *(leaf.dotted for leaf in leaves(command.config)),
    }
    for action in settings:
        assert re.fullmatch(r"\S.*\((default: .+|required)\)", action.help), action.dest
        assert " ".join(action.help.replace("%%", "%").split()) in text
    assert f"example: {' '.join(command.example.split())}" in text


def understood(prog: str, command: Command, words: list[str]) -> set[str]:
    """Dotted names of the settings given; the parser ends the process where it does not know a word."""
    return set(vars(build_parser(prog, "", [command]).parse_args(words)))


@pytest.mark.parametrize(("prog", "command"), COMMANDS, ids=IDS)
def test_examples_are_complete_and_understood(prog: str, command: Command):
    first, *words = shlex.split(command.example)
    given = understood(prog, command, words)
    assert first == prog
    assert words[0] == command.name
    required = {leaf.dotted for leaf in leaves(command.config) if leaf.field.is_required()}
    assert required <= given


def shell_lines(readme: Path) -> list[str]:
    """Commands in the README's bash blocks, continued lines joined, comments gone."""
    blocks = re.findall(
        r"^```bash\n(.*?)^```", readme.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [part for line in joined.splitlines() for part in re.split(r"&&|\|\|", line.partition(" #")[0])]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_commands_in_the_readmes_are_understood(readme: Path):
    by_name = {(prog, command.name): command for prog, command in COMMANDS}
    seen = 0
    for line in shell_lines(readme):
        found = re.search(
            r"(?:^\s*|-m )(judge-pipeline|reward-model|dpo|judge_pipeline\.cli|reward_model\.cli|dpo\.cli) (.+)",
            line,
        )
        if found is None or found[2].startswith("-"):
            continue
        prog = found[1].removesuffix(".cli").replace("_", "-")
        words = shlex.split(found[2])
        understood(prog, by_name[prog, words[0]], words)
        seen += 1
    assert seen


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_python_in_the_readmes_can_be_imported(readme: Path):
    blocks = re.findall(
        r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for module, names in re.findall(r"^from (\S+) import (.+)$", "\n".join(blocks), flags=re.MULTILINE):
        found = importlib.import_module(module)
        assert all(hasattr(found, name.strip()) for name in names.split(",")), module
