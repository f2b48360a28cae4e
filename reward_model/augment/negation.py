"""Statements denied, and denials taken back, in English and Chinese; as often one as the other.

A "not" more in every damaged answer would give them away without the document. `Balance` keeps count over a whole file,
so that words that deny are as frequent in damaged answers as in whole ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Direction = Literal["denied", "affirmed"]

_VERBS = "is|are|was|were|can|could|will|would|should|must|may"
_PARTICIPLE = r"(?=\s+(?:been|\w+ed|\w+en)\b)"
_PATTERNS: dict[Direction, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "denied": (
        re.compile(rf"\b({_VERBS}|(?:has|have|had){_PARTICIPLE})\b(?!\s+(?:not|never|no)\b)(?!n?['’]t)"),
        re.compile(r"(?<![不没未别])(可以|能够|愿意|同意|允许|需要|会(?![议计员长场])|是(?![否不]))"),
    ),
    "affirmed": (
        re.compile(rf"\b(ca(?=n['’]t)|{_VERBS}|has|have|had)(?:\s+not\b(?!\s+(?:only|yet|until))|n['’]t\b)"),
        re.compile(r"(?<!是)不(可以|能够|愿意|同意|允许|需要|会|是(?!不))"),
    ),
}


@dataclass
class Balance:
    """How many more denials were put in than taken out so far."""

    surplus: int = 0
    limit: int = 1

    def allows(self, direction: Direction) -> bool:
        """Whether one more in this direction keeps the two within `limit` of each other."""
        return abs(self.surplus + (1 if direction == "denied" else -1)) <= self.limit

    def count(self, direction: Direction) -> None:
        """Note one more."""
        self.surplus += 1 if direction == "denied" else -1


def reverse(sentence: str, direction: Direction) -> str:
    """The sentence with its first statement denied, or its first denial taken back; as it is where there is none."""
    english, chinese = _PATTERNS[direction]
    match = english.search(sentence)
    if match:
        verb = "can" if match[1] == "ca" else match[1]
        return _put(sentence, match, f"{verb} not" if direction == "denied" else verb)
    match = chinese.search(sentence)
    return _put(sentence, match, ("不" if direction == "denied" else "") + match[1]) if match else sentence


def _put(sentence: str, match: re.Match[str], text: str) -> str:
    return sentence[: match.start()] + text + sentence[match.end() :]
