"""What all kinds of reply have in common: two protocols, plain text and JSON held to a schema.

Both carry the same fields in the same order (analysis before result, so that the judge thinks before it rates), and
reading does not trust the mode: an engine that ignored the schema and answered in text is read as text, and the
other way round. What cannot be read is a typed `Problem`. Every string of a schema is bounded, for small models.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import regex

from judge_pipeline.calls.call import Reply
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.documents.words import Language
from judge_pipeline.replies.marks import Problem, fold

Fields = Mapping[str, str]
"""What an example in a prompt file says the judge replied, by field name."""

Read = TypeVar("Read")


@dataclass(frozen=True)
class Shape(ABC, Generic[Read]):
    """What all shapes share. `analysis_chars` and `item_chars` bound the strings of a structured reply."""

    language: Language = "en"
    analysis_chars: int = 1500
    item_chars: int = 600

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """JSON schema of the reply."""

    @abstractmethod
    def write(self, fields: Fields, *, structured: bool) -> str:
        """An example's reply as the judge should write it."""

    @abstractmethod
    def from_text(self, text: str, reply: Reply) -> Read | Problem:
        """Read a reply in the text protocol."""

    @abstractmethod
    def from_json(self, data: dict[str, Any], reply: Reply) -> Read | Problem:
        """Read a reply that is a JSON object."""

    def read(self, reply: Reply) -> Read | Problem:
        """What the reply says, or why it says nothing."""
        if reply.failure is not None:
            return Problem(reply.failure, reply.detail)
        if reply.finish_reason == "content_filter":
            return Problem("refused", "the engine's content filter stopped the reply")
        if (data := whole_object(reply.text)) is not None:
            # A closed object is a whole answer even if the engine went on with white space to its limit.
            return self.from_json(data, reply)
        if not after_thinking(reply.text)[0].strip():
            cut = reply.finish_reason == "length"  # all of it went into a reasoning block, or white space
            return Problem("truncated" if cut else "empty_reply", "the reply holds no text")
        if reply.finish_reason == "length":
            return Problem("truncated", f"the reply ran into its limit: …{reply.text[-80:]!r}")
        return self.from_text(reply.text, reply)

    def analysed(self, **properties: Any) -> dict[str, Any]:
        """Schema of an object that begins with a bounded analysis."""
        return object_schema({"analysis": {"type": "string", "maxLength": self.analysis_chars}, **properties})


def whole_object(text: str) -> dict[str, Any] | None:
    """The JSON object a reply consists of (a code fence around it is allowed), or None."""
    data = _object(
        text.strip()
    )  # as it stands first: a string in it may quote the end of somebody's thinking
    return _object(after_thinking(text)[0].strip()) if data is None else data


def _object(words: str) -> dict[str, Any] | None:
    fence = regex.fullmatch(r"```(?:json)?\s*(.*?)\s*```", words, regex.DOTALL)
    words = fence[1] if fence else words
    if not (words.startswith("{") and words.endswith("}")):
        return None
    try:
        # Grammars let raw control characters into strings; they do no harm there.
        data = json.loads(words, strict=False, object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice")  # which of two ratings is meant, nobody can say
    return data


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """Schema of an object with exactly these properties."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def wrong_schema(data: dict[str, Any], field_name: str) -> Problem:
    """The problem of an object that lacks a field, or has something else in it."""
    return Problem("unparsable", f"no usable '{field_name}' in {json.dumps(data, ensure_ascii=False)[:200]}")


def no_result(text: str, expected: str) -> Problem:
    """Why a reply holds nothing: a refusal or a filter's notice, else unparsable."""
    if _REFUSAL.match(fold(text)):
        return Problem("refused", text.strip()[:200])
    return Problem("unparsable", f"{expected} in: {text.strip()[:200]!r}")


_REFUSAL = regex.compile(
    r"\s*(?:i['’]?m sorry|sorry|i apologi[sz]e|unfortunately,? i|i (?:can(?:no|['’])t|won['’]t|am unable|must decline)"
    r"|i['’]m (?:unable|not able)|as an ai|i am not able|很?抱歉|对不起|我?无法|我不能|作为一个?(?:ai|人工智能|语言模型))"
    r"|.{0,200}(?:content (?:management )?policy|content[ _-]filter|was filtered|has been blocked|safety (?:system|polic)"
    r"|敏感内容|不安全(?:内容)?|内容安全|违规内容|不当内容)",
    regex.IGNORECASE | regex.DOTALL,
)
