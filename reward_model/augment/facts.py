"""Facts that can be exchanged: numbers, dates and names, each for another of the same document.

In: a document and a text about it. Out: the facts of the text, and the text with two facts of the document trading
places wherever they stand. Such a trade is a renaming: done in document and answer alike it keeps every truth; done in
one of them it breaks what was said of either. No word comes in that the document does not have, so nothing in the
wording tells a changed text from an unchanged one.

Names are found without a model. In scripts with capitals: words that begin with one inside a sentence and that the
document never spells small. In Chinese: a common surname with one or two characters behind it that stand together
again, and words that end as places and offices do.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import regex

from judge_pipeline.documents.citation import sentence_spans
from reward_model.augment.sentences import Answer

Kind = Literal["numbers", "dates", "names"]
KINDS: tuple[Kind, ...] = ("numbers", "dates", "names")

_NUMBER_WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|hundred"
_MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November|December|"
    "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec"
)
_WEEKDAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_UNITS = "年月日号个名位人元次米里岁万亿条件家天台辆公吨周倍页章幢栋座间所艘只"
_FACT = regex.compile(
    rf"""
      (?P<weekday>\b(?:{_WEEKDAYS})\b|(?:星期|周|礼拜)[一二三四五六日天])
    | (?P<month>\b(?:{_MONTHS})\b|(?<![\p{{N}}])\d{{1,2}}(?=月)|[一二三四五六七八九十]{{1,2}}(?=月))
    | (?P<year>(?<![\p{{Latin}}\p{{N}}.,:/-])(?:1\d|20)\d\d(?![\p{{Latin}}\p{{N}}]|[.,:/-]\d))
    | (?P<day>(?<![\p{{N}}])\d{{1,2}}(?=[日号]))
    | (?P<digits>(?<![\p{{Latin}}\p{{N}}.,:/#§-])(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?![\p{{Latin}}\p{{N}}]|[.,:/]\d|[.)]\s))
    | (?P<word>\b(?:{_NUMBER_WORDS})\b)
    | (?P<han>(?<!\d)[一二三四五六七八九十百千万两零〇]+(?=[{_UNITS}]))
    | (?P<title>(?<![\p{{L}}\p{{N}}'’-])\p{{Lu}}[\p{{Ll}}\p{{M}}]+(?:-\p{{Lu}}[\p{{Ll}}\p{{M}}]+)*(?![\p{{L}}\p{{N}}]))
    | (?P<caps>(?<![\p{{L}}\p{{N}}'’-])\p{{Lu}}{{2,}}(?![\p{{L}}\p{{N}}]))
    """,
    regex.VERBOSE,
)
_KIND_OF: Mapping[str, Kind] = {
    **dict.fromkeys(("digits", "word", "han"), "numbers"),
    **dict.fromkeys(("weekday", "month", "year", "day"), "dates"),
    **dict.fromkeys(("title", "caps", "person", "place", "site"), "names"),
}
_FITS_ANYWHERE = ("digits", "word", "han", "weekday", "month", "year", "day", "person")
"""Shapes whose facts differ little in use; a name must be used like the one it stands for."""
_SURNAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵钱严覃武戴莫孔向汤"
_PERSON = regex.compile(rf"[{_SURNAMES}]\p{{Han}}{{1,2}}")
_SPEAKS = regex.compile(
    r"先生|女士|教授|博士|医生|老师|主任|局长|镇长|市长|经理|说|表示|认为|指出|告诉|回答|记得|提出|负责|同意|[，。：、；]"
)
_PLACE = regex.compile(
    r"(?<=[在到从往去向于至了和与、，。]|^)\p{Han}{1,3}(?:省|市|县|镇|村|路|街|桥|河|湖|山|港|湾|岛|馆|厂|站|院)(?!\p{Han}?[长委])"
)
_CONTEXT_LEFT = regex.compile(r"(?:(\p{Han})|([\p{Latin}\p{N}\p{L}--\p{Han}]+)[\s$€£]*)$", regex.VERSION1)
_CONTEXT_RIGHT = regex.compile(r"^\s*(\p{Han}|[\p{L}\p{N}%--\p{Han}]+)", regex.VERSION1)


@dataclass(frozen=True)
class Fact:
    """An occurrence of a fact: `text[start:end]`; two facts can trade places when their shapes are the same."""

    text: str
    shape: str
    start: int
    end: int


@dataclass
class Use:
    """How a document uses a fact: the words before and behind it, and the sentences it stands in."""

    shape: str
    left: set[str] = field(default_factory=set)
    right: set[str] = field(default_factory=set)
    sentences: set[int] = field(default_factory=set)


class Lexicon:
    """The facts of a document and how it uses them."""

    def __init__(self, document: str) -> None:
        self._names = _names(document)
        self._han_names = _alternatives(_chinese_names(document))
        self.uses: dict[str, Use] = {}
        for number, (start, end) in enumerate(sentence_spans(document)):
            sentence = document[start:end]
            for fact in self.facts(sentence):
                use = self.uses.setdefault(fact.text, Use(fact.shape))
                left, right = _around(sentence, fact)
                use.left.add(left)
                use.right.add(right)
                use.sentences.add(number)

    def facts(self, text: str) -> list[Fact]:
        """The facts of a text about this document, in order; what numbers lines or stands in [brackets] is none."""
        found = [
            Fact(match[0], str(match.lastgroup), match.start(), match.end())
            for match in _FACT.finditer(text)
            if match.lastgroup not in ("title", "caps") or match[0] in self._names
        ]
        if self._han_names is not None:
            found += [
                Fact(m[0], _han_shape(m[0]), m.start(), m.end()) for m in self._han_names.finditer(text)
            ]
        kept: list[Fact] = []
        for fact in sorted(found, key=lambda fact: (fact.start, -fact.end)):
            if (not kept or fact.start >= kept[-1].end) and not _is_markup(text, fact):
                kept.append(fact)
        return kept

    def partners(self, fact: str, named: Sequence[set[str]]) -> list[tuple[int, str]]:
        """(closeness, fact) of the document's facts that `fact` can trade places with; `named`: facts by sentence.

        None that shares a sentence with it, in the document or in the answer: what is said of one may there be said
        of the other, and the trade would change nothing.
        """
        own = self.uses[fact]
        together = set().union(*(names for names in named if fact in names))
        least = 0 if own.shape in _FITS_ANYWHERE else 2
        return [
            (closeness, name)
            for name, use in self.uses.items()
            if use.shape == own.shape
            and name not in together
            and not use.sentences & own.sentences
            and (own.shape != "digits" or _alike(fact, name))
            and (closeness := self._closeness(fact, name)) >= least
        ]

    def _closeness(self, fact: str, other: str) -> int:
        one, two = self.uses[fact], self.uses[other]
        return 2 * bool(one.right & two.right) + bool(one.left & two.left) + (len(fact) == len(other))

    def trade(self, text: str, pairs: Mapping[str, str], *, last: bool = False) -> str:
        """The text with the two facts of each pair in each other's place, wherever they stand or only where last."""
        both = {**pairs, **{other: one for one, other in pairs.items()}}
        pieces, reached = [], 0
        facts = [fact for fact in self.facts(text) if fact.text in both]
        for fact in facts[-1:] if last else facts:
            pieces += [text[reached : fact.start], both[fact.text]]
            reached = fact.end
        return "".join(pieces) + text[reached:]

    def choose(
        self, answer: Answer, count: int, kinds: Sequence[Kind], rng: random.Random
    ) -> dict[str, str] | None:
        """`count` facts of an answer and their partners, none used twice; None where there are not as many.

        Facts whose partners are used most as they are go first: a name that fits its place is no trace.
        """
        names = [
            name
            for name in dict.fromkeys(fact.text for fact in self.facts(answer.text))
            if name in self.uses and _KIND_OF[self.uses[name].shape] in kinds
        ]
        named = [{fact.text for fact in self.facts(sentence)} for sentence in answer.sentences]
        found = []
        for name in rng.sample(names, len(names)):
            fitting = self.partners(name, named)
            best = max((closeness for closeness, _ in fitting), default=0)
            equal = [other for closeness, other in fitting if closeness == best]
            found.append((best, name, rng.sample(equal, len(equal))))
        pairs: dict[str, str] = {}
        for _, name, equal in sorted(found, key=lambda item: -item[0]):
            taken = {*pairs, *pairs.values()}
            other = next((other for other in equal if other not in taken), None)
            if other is not None and name not in taken and len(pairs) < count:
                pairs[name] = other
        return pairs if len(pairs) == count else None

    def kinds_of(self, pairs: Mapping[str, str]) -> str:
        """What the facts of these pairs are: "numbers", "dates", "names", or "facts" when they are mixed."""
        kinds = {_KIND_OF[self.uses[name].shape] for name in pairs}
        return kinds.pop() if len(kinds) == 1 else "facts"


def _alike(number: str, other: str) -> bool:
    """Whether two numbers are written alike and of about the same size."""
    same = all((mark in number) == (mark in other) for mark in ",.")
    return same and abs(len(number) - len(other)) <= 1


def _around(sentence: str, fact: Fact) -> tuple[str, str]:
    """The words before and behind a fact; any name and any number is as good as another."""
    left = _CONTEXT_LEFT.search(sentence[: fact.start])
    right = _CONTEXT_RIGHT.search(sentence[fact.end :])
    return _word_class(left[1] or left[2] if left else "^"), _word_class(right[1] if right else "$")


def _word_class(word: str) -> str:
    return "0" if word.isdigit() else "Name" if word[:1].isupper() else word


def _is_markup(text: str, fact: Fact) -> bool:
    """Whether it stands in square brackets, or is a digit that numbers a line or paragraph."""
    if text.rfind("[", 0, fact.start) > text.rfind("]", 0, fact.start):
        return True
    if fact.shape not in ("digits", "day", "month"):
        return False
    line = text.rfind("\n", 0, fact.start) + 1
    return not text[line : fact.start].strip() and not text[fact.end :].lstrip(" ").startswith(("月", "年"))


def _names(document: str) -> frozenset[str]:
    """Capitalised words inside sentences that the document never spells small."""
    small = {match[0] for match in regex.finditer(r"(?<!\p{L})\p{Ll}[\p{L}\p{M}]*", document)}
    counts: Counter[str] = Counter()
    for start, end in sentence_spans(document):
        for match in _inner_capitals(document[start:end]):
            counts[match] += 1
    return frozenset(
        name for name in counts if len(name) > 2 and name.lower() not in small and name not in _NO_NAMES
    )


_NO_NAMES = frozenset(
    [
        "He",
        "She",
        "They",
        "It",
        "We",
        "You",
        "His",
        "Her",
        "Their",
        "Its",
        "Our",
        "Your",
        "The",
        "This",
        "That",
        "These",
        "Those",
        "There",
        "Here",
        "And",
        "But",
        "For",
        "Not",
        "Yes",
        "No",
        "What",
        "When",
        "Where",
        "Who",
        "Why",
        "How",
        "If",
        "In",
        "On",
        "At",
        "Mr",
        "Mrs",
        "Ms",
        "Dr",
        "Sir",
        "Prof",
        "Miss",
        "St",
        "Passage",
        "Mondays",
        "Tuesdays",
        "Wednesdays",
        "Thursdays",
        "Fridays",
        "Saturdays",
        "Sundays",
    ]
)


def _inner_capitals(sentence: str) -> Iterator[str]:
    for match in _FACT.finditer(sentence):
        before = sentence[: match.start()].rstrip()
        if match.lastgroup in ("title", "caps") and before and before[-1] not in ".!?:“\"'‘’”([-*•":
            yield match[0]


def _chinese_names(document: str) -> list[str]:
    """Persons and places of a Chinese document that stand in it twice or more."""
    found: set[str] = set()
    for match in _PERSON.finditer(document, overlapped=True):
        long, short = match[0], match[0][:2]
        for name in (long, short) if len(long) == 3 else (short,):
            behind = document[match.start() + len(name) :]
            if document.count(name) > 1 and _SPEAKS.match(behind):
                found.add(name)
                break
    found |= {m[0] for m in _PLACE.finditer(document) if document.count(m[0]) > 1}
    return sorted(found, key=lambda name: (-len(name), name))


def _alternatives(names: Sequence[str]) -> regex.Pattern[str] | None:
    return regex.compile("|".join(map(regex.escape, names))) if names else None


def _han_shape(name: str) -> str:
    if name[-1] in "省市县镇村":
        return "place"
    return "site" if name[-1] in "路街桥河湖山港湾岛馆厂站院" else "person"
