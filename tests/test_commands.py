"""Every subcommand of the three commands: its help states each default and an example that would be understood."""

from __future__ import annotations

import re
import shlex

import pytest

from dpo import cli as dpo_cli
from judge_pipeline import __version__
from judge_pipeline import cli as judge_cli
from judge_pipeline.common.config import Command, build_parser, leaves
from reward_model import cli as reward_cli

PROGRAMS = {
    "judge-pipeline": (judge_cli.main, judge_cli.COMMANDS),
    "reward-model": (reward_cli.main, reward_cli.COMMANDS),
    "dpo": (dpo_cli.main, dpo_cli.COMMANDS),
}
COMMANDS = [(prog, command) for prog, (_, commands) in PROGRAMS.items() for command in commands]
IDS = [f"{prog} {command.name}" for prog, command in COMMANDS]


@pytest.mark.parametrize("prog", PROGRAMS)
def test_versions(prog: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[prog][0](["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{prog} {__version__}\n"


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


@pytest.mark.parametrize(("prog", "command"), COMMANDS, ids=IDS)
def test_examples_are_complete_and_understood(prog: str, command: Command):
    first, *words = shlex.split(command.example)
    given = vars(build_parser(prog, "", [command]).parse_args(words))
    assert first == prog
    required = {leaf.dotted for leaf in leaves(command.config) if leaf.field.is_required()}
    assert required <= given.keys()
