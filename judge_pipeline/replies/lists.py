"""Replies that are a list of single-line texts: factual statements of an answer, key points of a chunk.

A weak judge sometimes repeats the list of its prompt's example instead of reading the case. Items that are the
example's and that the text in question does not hold are dropped and counted; a reply of nothing else is unparsable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import regex

from judge_pipeline.calls.call import Reply
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.documents.words import Language
from judge_pipeline.replies.marks import Problem, fold
from judge_pipeline.replies.shape import Fields, Shape, no_result, object_schema, wrong_schema

NOTHING: dict[Language, str] = {"en": "NONE", "zh": "无"}


@dataclass(frozen=True)
class Items:
    """A list; `dropped` counts those beyond the limit the user set, `cut` those that the schema ended."""

    texts: tuple[str, ...]
    dropped: int = 0
    capped: bool = False
    """The list is as long as it may be: there may have been more."""
    cut: int = 0
    copied: int = 0
    """How many items of the prompt's examples were dropped from it."""


def plain(text: str) -> str:
    """Letters and digits alone, folded: two texts that differ in case, space or punctuation become one."""
    return _NO_WORD.sub("", fold(text).casefold())


def example_items(examples: Iterable[Fields], field: str) -> frozenset[str]:
    """The items, `plain`, that the example replies of a prompt list."""
    lines = (line for example in examples for line in example.get(field, "").splitlines())
    return frozenset(map(plain, lines)) - {""}


@dataclass(frozen=True)
class ListShape(Shape[Items]):
    """A list of single-line texts, or the word for nothing."""

    field: str = "statements"
    limit: int | None = None
    """How many the user wants kept; None for all."""
    examples: frozenset[str] = frozenset()
    """What the prompt's examples list (`example_items`): no item of the case, unless `source` holds it."""
    source: str = ""
    """The text that the list is taken from."""

    def schema(self) -> dict[str, Any]:
        """An array of bounded strings; how many, the user's limit and the reply's length decide."""
        item = {"type": "string", "minLength": 1, "maxLength": self.item_chars}
        most = {"maxItems": self.limit} if self.limit else {}
        return object_schema({self.field: {"type": "array", "items": item, **most}})

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's field of this name, one item a line; an empty one is the word for nothing."""
        items = [line.strip() for line in fields[self.field].splitlines() if line.strip()]
        if structured:
            return json.dumps({self.field: items}, ensure_ascii=False)
        return "\n".join(f"- {item}" for item in items) or NOTHING[self.language]

    def from_text(self, text: str, reply: Reply) -> Items | Problem:
        """Bulleted or numbered lines. "No relevant information" erases the line it stands on, nothing else."""
        items: list[str] = []
        said_nothing = False
        for raw in after_thinking(text)[0].splitlines():
            line = raw.strip()
            bullet = _BULLET.match(line)
            content = line[bullet.end() :].strip() if bullet else line
            if _NOTHING.fullmatch(fold(content)):
                said_nothing = True
            elif bullet and _WORD.search(content):
                items.append(content)
            elif items and content and raw[:1] in " \t":
                items[-1] += " " + content  # an indented line goes on with the item above it
        if not items and not said_nothing:
            return no_result(fold(text), "no list ('- …' or NONE)")
        return self._kept(items, bounded=False)

    def from_json(self, data: dict[str, Any], reply: Reply) -> Items | Problem:
        """The array's strings; anything else in it is another shape."""
        values = data.get(self.field)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return wrong_schema(data, self.field)
        items = [value.strip() for value in values if not _NOTHING.fullmatch(fold(value.strip()))]
        kept = self._kept([item for item in items if _WORD.search(item)], bounded=reply.structured)
        if not reply.structured or isinstance(kept, Problem):
            return kept
        return replace(kept, cut=sum(len(item) >= self.item_chars for item in kept.texts))

    def _kept(self, items: Sequence[str], *, bounded: bool) -> Items | Problem:
        own = [item for item in items if not self._is_copied(item)]
        copied = len(items) - len(own)
        if copied and not own:
            return Problem("unparsable", f"the list only repeats the prompt's example: {items[0][:120]!r}")
        if self.limit is None:
            return Items(tuple(own), copied=copied)
        capped = len(own) > self.limit or (bounded and len(items) == self.limit)
        return Items(tuple(own[: self.limit]), max(0, len(own) - self.limit), capped, copied=copied)

    def _is_copied(self, item: str) -> bool:
        words = plain(item)
        return words in self.examples and words not in plain(self.source)


# Not the beginning of "3.5 million", "12:30", "-5 degrees" or "**Heading**".
_BULLET = regex.compile(
    r"(?:[•·]|\*(?!\*)|[-–—](?![\d-])|\(?\d{1,3}\s*[.)、．:：](?!\d)|[SKＳＫ]\d{1,3}\s*[:：.](?!\d))\s*"
)
_NO_WORD = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
_WORD = regex.compile(r"[\p{L}\p{N}]")
_NOTHING = regex.compile(
    r"[\s*_\"'\[(]*(?:none|n/a|nothing|no relevant information(?: (?:is )?(?:found|here|in this (?:part|chunk|passage|section)))?"
    r"|no factual statements?|no key points?|无|没有|无相关信息|没有相关信息|无事实陈述|无要点)[\s*_\"'.。!\])]*",
    regex.IGNORECASE,
)
