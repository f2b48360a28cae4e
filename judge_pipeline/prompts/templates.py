"""Prompt templates: text files of a fixed, small form, turned into the messages of a call.

The task with its examples comes first, the case last, so that an engine's prefix cache holds everything before the
case. Examples are earlier turns of the chat, written in the protocol (text or JSON) of the call.

A file has these parts, in this order, each begun by a line of its own:

    @@ task        what the judge is to do
    @@ text        how to reply in the text protocol
    @@ json        how to reply in JSON
    @@ case        what one case looks like, with {placeholders}
    @@ example     any number of them: lines "@ field" and below each its value, for the placeholders of the
                   case and for the reply

A file whose parts are only `@@ system` and `@@ case` is a system message and a user message: the judge baselines
(pairwise, holistic), which say how to reply in the case and have no examples.

Placeholders are replaced in one pass, so a document that contains "{answer}" keeps it; fields that hold the
text of others are fenced (`fences`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from judge_pipeline.calls.call import Call, Message, Sampling
from judge_pipeline.common.errors import UserError
from judge_pipeline.documents.words import Language
from judge_pipeline.prompts.fences import fence, marked, numbered
from judge_pipeline.replies.shape import Shape

PROMPTS = Path(__file__).parent

RENDERING = "2"
"""Goes into every prompt version: raise it when rendering changes what a call says."""

CaseFields = Mapping[str, str | list[str]]

_PLACEHOLDER = regex.compile(r"\{(\w+)\}")
_LISTS = {"statements": "S", "key_points": "K", "passages": ""}
"""Fields that are lists. Statements and key points are one numbered line each, passages stand below marks."""


@dataclass(frozen=True)
class Template:
    """One prompt file, read and checked."""

    name: str
    parts: Mapping[str, str]
    """`task`, and how to reply in each protocol, `text` and `json`; or `system` alone."""
    case: str
    examples: tuple[Mapping[str, str], ...]
    version: str
    language: Language = "en"
    """Language of the file, which may be the fallback for the one asked for."""

    def messages(
        self, fields: CaseFields, shape: Shape[Any], *, structured: bool, few_shot: int | None
    ) -> tuple[Message, ...]:
        """The chat for one case. `few_shot` bounds the number of examples; None takes all."""
        case = self._render(fields)
        if "system" in self.parts:
            return Message(role="system", content=self.parts["system"]), Message(role="user", content=case)
        head = f"{self.parts['task']}\n\n{self.parts['json' if structured else 'text']}\n\n"
        turns: list[Message] = []
        for example in self.shown(few_shot):
            shown = {name: text.splitlines() if name in _LISTS else text for name, text in example.items()}
            turns.append(Message(role="user", content=head + self._render(shown)))
            turns.append(Message(role="assistant", content=shape.write(example, structured=structured)))
            head = ""
        return (*turns, Message(role="user", content=head + case))

    def shown(self, few_shot: int | None) -> tuple[Mapping[str, str], ...]:
        """The examples that a prompt holds."""
        return self.examples[:few_shot]

    def _render(self, fields: CaseFields) -> str:
        return _PLACEHOLDER.sub(lambda match: _show(match[1], fields[match[1]]), self.case)


def _show(name: str, value: str | list[str]) -> str:
    if isinstance(value, list):
        prefix = _LISTS[name]
        value = numbered(prefix, value) if prefix else marked(value)
    return fence(name.replace("_", "-"), value)


@lru_cache(maxsize=256)
def load_template(name: str, language: Language, folder: Path = PROMPTS) -> Template:
    """Read `folder/language/name.txt`; a language without the file falls back to English."""
    path = folder / language / f"{name}.txt"
    if not path.is_file():
        language, path = "en", folder / "en" / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = "a dimension's prompts lie in prompts/en/NAME.txt"
        raise UserError(f"no prompt file {path}", hint) from error
    return parse_template(name, text, str(path), language)


def parse_template(name: str, text: str, path: str = "", language: Language = "en") -> Template:
    """Read the text of a prompt file; a UserError says which part is wrong."""
    parts: dict[str, str] = {}
    examples: list[dict[str, str]] = []
    for title, body in _split(text, "@@ "):
        if title == "example":
            examples.append(dict(_split(body, "@ ")))
        else:
            parts[title] = body
    baseline = "system" in parts
    missing = ({"system", "case"} if baseline else {"task", "text", "json", "case"}) - set(parts)
    if missing:
        raise UserError(f"{path or name}: the part '@@ {min(missing)}' is missing")
    needed = set(_PLACEHOLDER.findall(parts["case"]))
    for number, example in enumerate(examples, start=1):
        if needed - set(example):
            raise UserError(f"{path or name}: example {number} lacks '@ {min(needed - set(example))}'")
    if baseline:  # the form these prompts were first hashed in: calls that are stored stay valid
        version = _hash(f"{parts['system']}\n=== user ===\n{parts['case']}\n")[:16]
    else:
        version = _hash(f"{RENDERING}\n{text}")[:12]
    return Template(name, parts, parts["case"], tuple(examples), version, language)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _split(text: str, marker: str) -> list[tuple[str, str]]:
    """The (title, body) pairs of a text cut at lines that begin with `marker`."""
    pairs: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith(marker):
            pairs.append((line[len(marker) :].strip(), ""))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]}{line}\n")
    return [(title, body.strip()) for title, body in pairs]


def build_call(
    template: Template,
    fields: CaseFields,
    shape: Shape[Any],
    sampling: Sampling,
    *,
    structured: bool,
    few_shot: int | None = None,
) -> Call:
    """The call that asks `template` about one case."""
    return Call(
        template=template.name,
        messages=template.messages(fields, shape, structured=structured, few_shot=few_shot),
        sampling=sampling,
        json_schema=shape.schema() if structured else None,
        prompt_version=template.version,
    )
