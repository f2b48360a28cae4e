"""Run directories: `run.yaml` says what was run, with what, and is enough to run it again.

A directory that holds a run of the same configuration is resumed; of another, the user chooses: refuse
(default), resume, or replace. A run that ended before it had done anything is no obstacle to another one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel

from judge_pipeline import __version__
from judge_pipeline.common.config import Config, leaves
from judge_pipeline.common.errors import UserError, writing
from judge_pipeline.common.record_files import read_yaml, write_text
from judge_pipeline.common.run_lock import LOCK

Existing = Literal["refuse", "resume", "replace"]
EXISTING_HELP = "if the output holds a run of another configuration: refuse, resume it, or replace it"
ExistingFile = Literal["refuse", "replace"]
"""For commands that make their file in one go: there is nothing to resume."""
EXISTING_FILE_HELP = "if the output holds another run's result: refuse, or replace it"

PACKAGES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "sentence-transformers",
    "openai",
    "xgrammar",
    "vllm",
]


def versions() -> dict[str, str]:
    """Versions of Python, of this product and of the packages that shape results."""
    found = {"longreward-distill": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional, or not needed by this command
    return found


def git_revision() -> str | None:
    """Commit of the checkout this code runs from, `-dirty` when it was edited; None outside a checkout."""
    here = Path(__file__).parent
    try:
        words = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Settings as YAML can hold them; paths absolute, so that a run can be repeated from anywhere."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def describe_run(
    config: Config, command: str, inputs: Sequence[Path] = (), extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a run.yaml."""
    plain = _plain(config)
    return {
        "command": command,
        "argv": sys.argv[1:],
        "config": plain,
        "seed": plain.get("seed"),
        "inputs": {str(path.absolute()): file_digest(path) for path in inputs if path.is_file()},
        "versions": versions(),
        "git_revision": git_revision(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **(extra or {}),
    }


def write_run_yaml(path: Path, run: dict[str, Any]) -> None:
    """Write a run's description, whole or not at all."""
    write_text(path, yaml.safe_dump(run, sort_keys=False, allow_unicode=True))


def read_run_yaml(path: Path) -> dict[str, Any]:
    """Read a run's description; `path` is the file or the run directory."""
    file = path / "run.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} is not there: this is not the directory of a run")
    if not (content := read_yaml(file)):
        raise UserError(f"{file} does not describe a run")
    return content


def prepare_run(
    output: Path,
    config: Config,
    command: str,
    existing: Existing = "refuse",
    inputs: Sequence[Path] = (),
    extra: dict[str, Any] | None = None,
    idle: Collection[str] = (),
    run_file: Path | None = None,
) -> bool:
    """Make `output` ready for a run and write its description; True when an earlier run there is resumed.

    `output` is a directory that holds its run.yaml, or a file with `run_file` beside it. `idle` names files that hold
    no work yet. Raises UserError when a run of another configuration is there that has done something and `existing`
    is "refuse", or files but no run at all.
    """
    run_file = run_file or output / "run.yaml"
    check_place(output, run_file, inputs, existing)
    run = describe_run(config, command, inputs, extra)
    resuming = False
    with writing(run_file):
        if run_file.is_file():
            # A start that failed before its first result is nothing to lose, whatever it was to be.
            if existing == "replace" or _has_work(output, run_file, idle):
                resuming = _meet_earlier_run(run_file, output, config, run, existing)
        elif output.is_dir() and existing != "resume" and {item.name for item in output.iterdir()} - {LOCK}:
            raise UserError(
                f"{output} holds files but no run.yaml: it is not a run of ours",
                "name an empty or new directory (or --existing resume to write into this one)",
            )
        elif output.is_file() and existing == "refuse":
            raise UserError(f"{output} is there already", "name another file, or choose --existing replace")
        write_run_yaml(run_file, run)
    return resuming


def check_place(output: Path, run_file: Path, inputs: Sequence[Path], existing: Existing = "refuse") -> None:
    """Refuse an output of the wrong kind, and one whose making would destroy an input. Raises UserError."""
    is_folder = run_file.parent == output
    if is_folder and output.is_file():
        raise UserError(f"--output {output} is a file", "name a directory")
    if not is_folder and output.is_dir():
        raise UserError(f"--output {output} is a folder", "name a file")
    place = output.resolve()
    for path in inputs:
        if path.resolve() == place:
            raise UserError(f"--output is the input {path}", "name another file; inputs are kept as they are")
        if existing == "replace" and place in path.resolve().parents:
            raise UserError(
                f"--existing replace would delete the input {path}, which lies in {output}",
                "move the input out of there, or name another --output",
            )


def _meet_earlier_run(
    run_file: Path, output: Path, config: Config, run: dict[str, Any], existing: Existing
) -> bool:
    """What `existing` says of the run that is there; True when it is resumed."""
    earlier = read_run_yaml(run_file)
    if existing == "replace":
        _remove(output, run_file)
        return False
    lines = _otherwise(config, earlier, run)
    if lines and existing == "refuse":
        raise UserError(
            f"{output} already holds a run of another configuration:\n  " + "\n  ".join(lines),
            f"choose {_ways_on(config)}--existing replace, or another --output",
        )
    run["started"] = earlier.get("started", run["started"])
    return True


def other_configuration(output: Path, config: Config, command: str, inputs: Sequence[Path]) -> list[str]:
    """What a run of these settings and inputs has otherwise than the one in `output`, a line each."""
    return _otherwise(config, read_run_yaml(output), describe_run(config, command, inputs))


def _otherwise(config: Config, earlier: dict[str, Any], run: dict[str, Any]) -> list[str]:
    lines = differences(type(config), earlier, run, ("there", "now"))
    old, new = earlier.get("inputs") or {}, run["inputs"]
    changed = [path for path in sorted(old.keys() & new.keys()) if old[path] != new[path]]
    if not lines:  # else they have said already that other files are read now
        lines += [f"inputs: {path} was read there, not now" for path in sorted(old.keys() - new.keys())]
        lines += [f"inputs: {path} is read now, not there" for path in sorted(new.keys() - old.keys())]
    return lines + [f"inputs: {path} has other content now" for path in changed]


def _ways_on(config: Config) -> str:
    setting = type(config).model_fields.get("existing")
    resumes = setting is None or "resume" in get_args(setting.annotation)
    return "--existing resume (keep what is there and go on), " if resumes else ""


def differences(
    settings: type[Config], left: dict[str, Any], right: dict[str, Any], names: tuple[str, str]
) -> list[str]:
    """In which settings that decide what a run produces two runs differ, a line each; `names` tells them apart."""
    one, other = _compared(settings, left), _compared(settings, right)
    differing = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return [f"{name}: {one.get(name)!r} {names[0]}, {other.get(name)!r} {names[1]}" for name in differing]


def _compared(settings: type[Config], run: dict[str, Any]) -> dict[str, Any]:
    """The command and the settings that decide what a run produces, by dotted name; mappings opened up."""
    found = {"command": run.get("command")}
    for leaf in leaves(settings):
        if leaf.extra.get("identity") is False:
            continue
        value: Any = run.get("config")
        for name in leaf.path:
            value = value.get(name) if isinstance(value, dict) else None
        parts = {f".{key}": item for key, item in value.items()} if isinstance(value, dict) else {"": value}
        found |= {f"config.{leaf.dotted}{key}": item for key, item in parts.items()}
    return found


def _has_work(output: Path, run_file: Path, idle: Collection[str]) -> bool:
    """Whether an earlier run left anything besides its description, empty files and `idle` ones."""
    if output.is_dir():
        found = (path for path in output.rglob("*") if path.is_symlink() or not path.is_dir())
        left = [path for path in found if path.name not in {*idle, LOCK}]
    else:  # beside a file lie what belongs to it: FILE.part, FILE.summary.json
        left = [path for path in output.parent.iterdir() if path.name.startswith(output.name)]
    return any(path != run_file and path.lstat().st_size > 0 for path in left)


def _remove(output: Path, run_file: Path) -> None:
    if output.is_dir():
        for item in (path for path in output.iterdir() if path.name != LOCK):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    elif output.is_file():
        output.unlink()
    run_file.unlink(missing_ok=True)
