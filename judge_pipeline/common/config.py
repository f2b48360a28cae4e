"""One way to configure every command: a typed model, whose fields are flags and YAML keys.

A command is a pydantic model and a function. `main` makes the flags from the model (`judge.base_url` becomes
`--judge.base-url`), reads `--config FILE.yaml`, lets flags beat the file, and refuses unknown names with the
nearest known one. Field metadata, through `Field(json_schema_extra={...})`:

- `"positional": True`  the field is given by place, not by flag;
- `"identity": False`   the field changes how a run goes, not what it produces, so a resumed run may differ in it.

On argparse and pydantic, because pydantic-settings' CliApp and jsonargparse, both tried, refuse `--judge.base-url A B`,
the spelling of YAML on the command line, and a positional that a YAML file gives; neither names the nearest flag.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from judge_pipeline import __version__
from judge_pipeline.common.errors import UserError, writing_failed
from judge_pipeline.common.record_files import read_yaml

POSITIONAL: JsonDict = {"positional": True}


class Config(BaseModel):
    """Base of every command's settings: unknown keys are errors, defaults are checked too."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())


Setting = typing.TypeVar("Setting", bound=Config)


def setting(default: Any, description: str, **limits: Any) -> Any:
    """A field with a default and its help text."""
    return Field(default, description=description, **limits)


def free(default: Any, description: str, **limits: Any) -> Any:
    """A setting that changes how a run goes and not what it produces."""
    return Field(default, description=description, json_schema_extra={"identity": False}, **limits)


@dataclass(frozen=True)
class Command:
    """A subcommand: its settings model, the function that runs it, and one example for the help text."""

    name: str
    help: str
    config: type[Config]
    run: Callable[[Any], int | None] | str
    """Takes the resolved config; returns the exit code (None is 0). As "module:function" it is imported when it
    runs, so that `--help` loads nothing that is slow to import."""
    example: str

    def execute(self, config: Config) -> int:
        """Run the command; returns its exit code."""
        run = self.run
        if isinstance(run, str):
            module, _, name = run.partition(":")
            run = getattr(importlib.import_module(module), name)
        return run(config) or 0


@dataclass(frozen=True)
class Leaf:
    """A field that holds a value (not a group of fields), and its path from the root of the settings."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def dotted(self) -> str:
        """The YAML spelling, `judge.base_url`."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """The flag, `--judge.base-url`."""
        return "--" + self.dotted.replace("_", "-")

    @property
    def extra(self) -> dict[str, Any]:
        """Our own metadata of the field."""
        found = self.field.json_schema_extra
        return found if isinstance(found, dict) else {}


def leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """All value fields of a settings model, groups opened up."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, (*prefix, name))
        else:
            yield Leaf((*prefix, name), field)


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of an annotation without None: `int | None` → [int]."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [kind for arg in typing.get_args(annotation) if arg is not type(None) for kind in _kinds(arg)]
    return [annotation]


def check_url(value: str) -> str:
    """An endpoint's address as it is; for a settings model's validator. Raises ValueError without http(s)://."""
    if not value.startswith(("http://", "https://")):
        raise ValueError(
            f"'{value}' is no address: it begins with http:// or https://, and usually ends in /v1"
        )
    return value


def json_values(value: Any) -> Any:
    """A mapping whose values may be JSON, as the command line gives them: `top_k=5` means the number; for a validator."""
    if not isinstance(value, dict):
        return value
    decoded = dict(value)
    for key, item in decoded.items():
        with contextlib.suppress(ValueError):  # else it is text
            decoded[key] = json.loads(item) if isinstance(item, str) else item
    return decoded


def _origin(annotation: Any) -> Any:
    kinds = _kinds(annotation)
    return typing.get_origin(kinds[0]) or kinds[0]


def _help(leaf: Leaf) -> str:
    text = (leaf.field.description or "").replace("%", "%%")
    if leaf.field.is_required():
        return f"{text} (required)"
    default = leaf.field.get_default(call_default_factory=True)
    if isinstance(default, dict):
        default = ",".join(f"{key}={value}" for key, value in default.items()) or "none"
    if isinstance(default, (list, tuple)):
        default = " ".join(str(item) for item in default) or "none"
    return f"{text} (default: {'none' if default is None else default})".replace("%%)", "%)")


def _add_leaf(parser: argparse.ArgumentParser, leaf: Leaf) -> None:
    origin, name = _origin(leaf.field.annotation), leaf.path[-1].upper()
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(leaf), "metavar": name}
    if leaf.extra.get("positional"):
        # Optional for argparse, because a YAML file may give it; validation asks for what is still missing.
        parser.add_argument(leaf.dotted, nargs="*" if origin in (list, tuple) else "?", **options)
        return
    if origin is bool:
        del options["metavar"]
        options["action"] = argparse.BooleanOptionalAction
    elif origin is Literal:
        options["metavar"] = "{" + ",".join(_choices(leaf.field.annotation)) + "}"
    elif origin in (list, tuple):
        options.update(nargs="+", action="extend")
    parser.add_argument(leaf.flag, dest=leaf.dotted, **options)


def _parse_mapping(text: str, flag: str) -> dict[str, str]:
    """`a=2,b=1` → {"a": "2", "b": "1"}."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals and key.strip() for key, equals, _ in pairs):
        raise UserError(f"{flag}: '{text}' is not of the form name=value,name=value")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _choices(annotation: Any) -> list[str]:
    """Every literal an annotation allows: `Literal["a", "b"] | Literal["c"]` → a, b, c."""
    literals = (kind for kind in _kinds(annotation) if typing.get_origin(kind) is Literal)
    return [str(choice) for kind in literals for choice in typing.get_args(kind)]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"did you mean '{close[0]}'?" if close else ""


def read_settings(path: Path, model: type[Config], command: str | None = None) -> dict[str, Any]:
    """Read a configuration file into nested keys; dashes, dots and nesting are all understood.

    The run.yaml of an earlier run of `command` ("dpo sample") is a configuration file too: the settings in it.
    """
    content = read_yaml(path, "--config: ")
    known = {leaf.dotted: leaf for leaf in leaves(model)}
    if "config" not in known and isinstance(content.get("config"), dict) and "versions" in content:
        ran = content.get("command")
        if command is not None and ran != command:
            raise UserError(f"--config: {path} describes a run of `{ran}`, not of `{command}`")
        # What to do with the directory was a decision of that day: a run repeated must not replace what is there.
        content = {key: value for key, value in content["config"].items() if key != "existing"}
    return _placed(content, known, str(path))


def _placed(content: dict[Any, Any], known: dict[str, Leaf], where: str) -> dict[str, Any]:
    """Keys with dashes, dots or nesting as nested keys; one that no setting has is an error that begins with `where`."""
    values: dict[str, Any] = {}
    for dotted, value in _flatten(content, known):
        if dotted not in known:
            raise UserError(f"{where}: unknown key '{dotted}'", _nearest(dotted, list(known)))
        _put(values, known[dotted].path, value)
    return values


def settings_from(model: type[Setting], content: dict[str, Any], where: str) -> Setting:
    """Settings from a mapping as a YAML file would hold it, for a command that runs others; `where` names it in errors."""
    known = {leaf.dotted: leaf for leaf in leaves(model)}
    try:
        return model.model_validate(_placed(content, known, where))
    except ValidationError as error:
        found = _settings_error(error, known)
        raise UserError(f"{where}: {found.message}", found.hint) from error


def _flatten(content: dict[Any, Any], known: dict[str, Leaf], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        dotted = prefix + str(key).replace("-", "_")
        if isinstance(value, dict) and dotted not in known:
            yield from _flatten(value, known, dotted + ".")
        else:
            yield dotted, value


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def resolve(
    model: type[Config], flags: dict[str, Any], config_file: Path | None = None, command: str | None = None
) -> Config:
    """Settings from a YAML file with flags (dotted name → text or list of texts) laid over it."""
    values = read_settings(config_file, model, command) if config_file else {}
    known = {leaf.dotted: leaf for leaf in leaves(model)}
    for dotted, value in flags.items():
        leaf = known[dotted]
        if _origin(leaf.field.annotation) is dict and isinstance(value, str):
            value = _parse_mapping(value, leaf.flag)
        _put(values, leaf.path, value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _settings_error(error, known) from error


def _settings_error(error: ValidationError, known: dict[str, Leaf]) -> UserError:
    lines = []
    for item in error.errors():
        dotted = ".".join(str(part) for part in item["loc"])
        leaf = next((known[name] for name in known if dotted == name or dotted.startswith(name + ".")), None)
        name = leaf.dotted.upper() if leaf and leaf.extra.get("positional") else leaf.flag if leaf else dotted
        message = "is missing" if item["type"] == "missing" else item["msg"].removeprefix("Value error, ")
        if item["type"] == "literal_error" and leaf:
            message = f"Input should be one of {', '.join(_choices(leaf.field.annotation))}"
        lines.append(f"{name}: {message}" if name else message)
    # A union of literals is one error for each of its parts.
    return UserError("\n".join(dict.fromkeys(lines)), "--help lists every setting with its default")


def build_parser(prog: str, description: str, commands: Sequence[Command]) -> argparse.ArgumentParser:
    """The argument parser for a program with subcommands."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in commands:
        sub = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="YAML file with any of the settings below, or the run.yaml of an earlier run; a flag beats it "
            "(default: none)",
        )
        for leaf in leaves(command.config):
            _add_leaf(sub, leaf)
    return parser


def _dashed(word: str) -> str:
    """`--judge.base_url=a_b` → `--judge.base-url=a_b`: flags may be written as in YAML."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _parse(
    prog: str, description: str, commands: Sequence[Command], argv: Sequence[str]
) -> tuple[Command, Config]:
    spelled = [_dashed(word) for word in argv]
    namespace, unknown = build_parser(prog, description, commands).parse_known_args(spelled)
    command = next(item for item in commands if item.name == namespace.command)
    if unknown:
        hint = f"see {prog} {command.name} --help"
        if unknown[0].startswith("--"):
            hint = _nearest(unknown[0], [leaf.flag for leaf in leaves(command.config)])
        raise UserError(f"unknown argument '{unknown[0]}'", hint)
    flags = vars(namespace)
    del flags["command"]
    return command, resolve(command.config, flags, flags.pop("config"), f"{prog} {command.name}")


def main(
    prog: str, commands: Sequence[Command], argv: Sequence[str] | None = None, description: str = ""
) -> int:
    """Run the subcommand named in `argv`; returns its exit code: 0 done, 2 a user's error, 130 interrupted."""
    try:
        command, config = _parse(prog, description, commands, sys.argv[1:] if argv is None else argv)
        return command.execute(config)
    except UserError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        message = f"\n{prog}: stopped; what is finished is kept, run the same command again to go on"
        print(message, file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0  # `… | head` closed our output: nothing is wrong
    except Exception as error:
        told = writing_failed(error)
        if told is None:
            raise  # a defect of ours: its traceback is wanted
        print(f"{prog}: error: {told}", file=sys.stderr)
        return told.exit_code
