"""Prompts of the judge baselines (pairwise, holistic): text files, filled in one pass.

A document or an answer may contain anything, placeholders, headings and control tokens too: values are put in by one
substitution, so that nothing inside a value is ever substituted again, and each in a fence that it cannot close.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from judge_pipeline.calls.call import Call, Message, Sampling
from judge_pipeline.prompts.fences import fence

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SPLIT = "=== user ===\n"
_HAN = re.compile(r"[\u3400-\u9fff]")
MAX_TOKENS = 512


@dataclass(frozen=True)
class BaselinePrompt:
    """A template's two messages and the hash of its text."""

    system: str
    user: str
    version: str


@cache
def load_prompt(name: str, language: str) -> BaselinePrompt:
    """Read `prompts/NAME.LANGUAGE.txt`."""
    text = (files("judge_pipeline.prompts") / "baselines" / f"{name}.{language}.txt").read_text("utf-8")
    system, _, user = text.partition(_SPLIT)
    return BaselinePrompt(system.strip(), user.strip(), hashlib.sha256(text.encode()).hexdigest()[:16])


def language_of(text: str) -> str:
    """`zh` for a text with a fifth or more Chinese characters, otherwise `en`."""
    return "zh" if len(_HAN.findall(text)) >= 0.2 * max(1, len(text)) else "en"


def baseline_call(
    name: str,
    document: str,
    values: dict[str, str],
    schema: dict[str, Any] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Call:
    """The call of one baseline question over a document; `schema` where the engine can hold an answer to it."""
    prompt = load_prompt(name, language_of(document))
    given = {key: fence(key, value) for key, value in {"document": document, **values}.items()}
    user = _PLACEHOLDER.sub(lambda match: given.get(match[1], match[0]), prompt.user)
    return Call(
        template=f"baseline.{name}",
        messages=(Message(role="system", content=prompt.system), Message(role="user", content=user)),
        sampling=Sampling(max_tokens=max_tokens),
        json_schema=schema,
        prompt_version=prompt.version,
    )
