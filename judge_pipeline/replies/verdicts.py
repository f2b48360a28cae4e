"""Replies that end in a verdict: how far a document supports a statement (`VerdictShape`), or each of several.

[[Not fully supported]] is partial support, never full; [[Supported]] and [[Full support]] are full. What a sane
reader could not settle is a typed `Problem`; `marks` says which of several verdicts counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import regex

from judge_pipeline.calls.call import Reply
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.documents.words import Language
from judge_pipeline.replies.expected import Expectation, expected_verdict
from judge_pipeline.replies.marks import (
    Mark,
    Problem,
    choose,
    find_marks,
    fold,
    label_pattern,
)
from judge_pipeline.replies.shape import Fields, Shape, no_result, object_schema, wrong_schema

Support = Literal["full", "partial", "none"]

VERDICT_POINTS: dict[Support, float] = {"full": 1.0, "partial": 0.5, "none": 0.0}
"""What each verdict counts (LongReward, section 3.1)."""

VERDICT_WORDS: dict[Language, dict[Support, str]] = {
    "en": {"full": "Fully supported", "partial": "Partially supported", "none": "No support"},
    "zh": {"full": "完全支持", "partial": "部分支持", "none": "不支持"},
}


@dataclass(frozen=True)
class Verdict:
    """How far a document supports a statement, and the judge's reasons."""

    analysis: str
    support: Support
    start: int = field(default=-1, compare=False)
    """Where its words begin in the reply; -1 where nobody looked."""
    expectation: Expectation | None = None
    """The finer verdict (0–1), where the reply came with log-probabilities to tell it."""

    def refined(self, reply: Reply, language: Language) -> Verdict:
        """The same with its expected value."""
        if self.start < 0:
            return self
        worth = {words: VERDICT_POINTS[name] for name, words in VERDICT_WORDS[language].items()}
        place = self.start, self.start + 1
        printed = VERDICT_POINTS[self.support]
        found = expected_verdict(reply.text, printed, place, worth, reply.logprobs)
        return replace(self, expectation=found)


@dataclass(frozen=True)
class VerdictShape(Shape[Verdict]):
    """Analysis, then one of the three verdicts."""

    def schema(self) -> dict[str, Any]:
        """Analysis and verdict."""
        return self.analysed(verdict={"type": "string", "enum": list(VERDICT_WORDS[self.language].values())})

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `analysis` and `verdict` (full, partial, none)."""
        verdict = VERDICT_WORDS[self.language][fields["verdict"]]  # type: ignore[index]
        if structured:
            return json.dumps({"analysis": fields["analysis"], "verdict": verdict}, ensure_ascii=False)
        return f"{fields['analysis']}\n[[{verdict}]]"

    def from_text(self, text: str, reply: Reply) -> Verdict | Problem:
        """Everything before the verdict's line is the analysis."""
        verdict = read_verdict(text)
        return verdict if isinstance(verdict, Problem) else verdict.refined(reply, self.language)

    def from_json(self, data: dict[str, Any], reply: Reply) -> Verdict | Problem:
        """The verdict in words, as the text protocol understands them."""
        places = [match.end() for match in _JSON_VERDICT.finditer(reply.text)]
        return self.from_part(data, reply, places[-1] if places else -1)

    def from_part(self, data: dict[str, Any], reply: Reply, start: int) -> Verdict | Problem:
        """The verdict of one JSON object, whose words begin at `start` of the reply."""
        value = data.get("verdict")
        support = support_of(value.strip("[]")) if isinstance(value, str) else None
        if support is None:
            return wrong_schema(data, "verdict")
        return Verdict(str(data.get("analysis", "")).strip(), support, start).refined(reply, self.language)


@dataclass(frozen=True)
class VerdictsShape(Shape[dict[int, "Verdict | Problem"]]):
    """Analysis and verdict for each of `count` statements, keyed S1, S2, …; one passed over is not in the result."""

    count: int = 1

    @property
    def _one(self) -> VerdictShape:
        return VerdictShape(self.language, self.analysis_chars, self.item_chars)

    def schema(self) -> dict[str, Any]:
        """One object a statement, under its key: a constrained judge cannot pass one over."""
        return object_schema({f"S{number}": self._one.schema() for number in range(1, self.count + 1)})

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `analysis` and `verdict`, each one line a statement."""
        words = [VERDICT_WORDS[self.language][word.strip()] for word in fields["verdict"].splitlines()]  # type: ignore[index]
        pairs = list(zip(fields["analysis"].splitlines(), words, strict=True))
        if structured:
            data = {f"S{n}": {"analysis": a, "verdict": v} for n, (a, v) in enumerate(pairs, start=1)}
            return json.dumps(data, ensure_ascii=False)
        return "\n".join(f"S{n}: {a} [[{v}]]" for n, (a, v) in enumerate(pairs, start=1))

    def from_text(self, text: str, reply: Reply) -> dict[int, Verdict | Problem] | Problem:
        """Verdicts by number, from lines that begin with it."""
        found = read_verdicts(text, range(1, self.count + 1))
        return {
            number: one if isinstance(one, Problem) else one.refined(reply, self.language)
            for number, one in found.items()
        } or no_result(fold(text), "no line 'S1: … [[verdict]]'")

    def from_json(self, data: dict[str, Any], reply: Reply) -> dict[int, Verdict | Problem] | Problem:
        """Verdicts by number, from the objects under their keys."""
        parts = {number: data.get(f"S{number}") for number in range(1, self.count + 1)}
        places = [match.end() for match in _JSON_VERDICT.finditer(reply.text)]
        if len(places) != self.count or list(data) != [f"S{number}" for number in parts]:
            places = [-1] * self.count  # which verdict stands where, nobody can say
        found = {
            number: self._one.from_part(part, reply, start)
            for (number, part), start in zip(parts.items(), places, strict=True)
            if isinstance(part, dict)
        }
        return found or wrong_schema(data, "S1")


_JSON_VERDICT = regex.compile(r'(?<!\\)"verdict"\s*:\s*"\[*')
_VERDICT_LABEL = label_pattern(
    r"verdict|conclusion|judge?ment|support(?: level)?|rating|结论|判断|判定|裁定|评级|支持程度|评价"
)
_FULL = (
    r"(?:(?:fully|completely|entirely|wholly|totally|well|clearly|strongly) )?supported|(?:full|complete|total) support"
    r"|full|fully|support|supports|(?:完全|充分|全部|全)?(?:得到|被)?支持"
)
_PARTIAL = (
    r"(?:partially|partly|somewhat|mostly|largely|mainly|weakly) support(?:ed|s)?|partial(?:ly)?|partial support|some support"
    r"|supported in part|(?:not|n['’]t) (?:fully|completely|entirely|wholly|totally) support(?:ed)?"
    r"|(?:部分|基本|大部分|一定程度(?:上)?)(?:得到|被)?支持|(?:不|未|没有|未能|并非|并未)(?:完全|全部|充分)(?:得到|被)?支持"
)
_NONE = (
    r"(?:no|without|lacks?|zero)(?: any)? support|not(?: at all| even)?(?: partially)? support(?:ed)?(?: at all)?|unsupported"
    r"|(?:does not|doesn['’]t) support|(?:fully |completely |entirely )?(?:contradicted|refuted)|none"
    r"|(?:不|未|无|没有|无法|没有得到|未得到|不被|完全不|完全没有|毫无|不能)(?:得到|被)?支持|(?:相|与文档)?矛盾"
)
_VERDICTS: tuple[tuple[Support, regex.Pattern[str]], ...] = (
    ("partial", regex.compile(_PARTIAL, regex.IGNORECASE)),
    ("none", regex.compile(_NONE, regex.IGNORECASE)),
    ("full", regex.compile(_FULL, regex.IGNORECASE)),
)


def support_of(raw: str) -> Support | None:
    """The support named in a few words ("Fully supported", "不支持"); None for anything else, never a guess."""
    words = regex.sub(r"[\s_\-]+", " ", fold(raw)).strip(" .。!*`\"'“”")
    words = regex.sub(
        r"^(?:verdict|结论|判断|the statement|it|陈述)(?: is|是)?\s*:?\s*", "", words, flags=regex.IGNORECASE
    )
    words = regex.sub(r"^(?:is|are)(?: not)? ", lambda m: "not " if "not" in m.group().lower() else "", words)
    for name, pattern in _VERDICTS:
        if pattern.fullmatch(words):
            return name
    return None


def read_verdict(text: str) -> Verdict | Problem:
    """The verdict a reply states about one statement; what stands before its line is the analysis."""
    words, offset = after_thinking(text)
    folded = fold(words)

    def understand(mark: Mark) -> Support | Problem | None:
        support = support_of(mark.inner)
        if support is None and mark.labelled:
            return Problem("unparsable", f"no verdict is called [[{mark.inner}]]")
        return support

    chosen: tuple[Support, Mark] | Problem | None = choose(find_marks(folded, _VERDICT_LABEL), understand)
    located: tuple[Support, Mark | int] | Problem = chosen or _plain_verdict(folded)
    if isinstance(located, Problem):
        return located
    support, place = located
    start = place if isinstance(place, int) else place.start
    line = folded.rfind("\n", 0, start) + 1
    return Verdict((words[:line] or text).strip(), support, offset + start)


def _plain_verdict(folded: str) -> tuple[Support, int] | Problem:
    """A verdict without brackets: a line that is nothing else, labelled or not; and where its words begin."""
    found: list[tuple[Support, int]] = []
    position = 0
    for line in folded.splitlines(keepends=True):
        stripped = line.strip(" \t\n*_#-")
        label = regex.match(
            r"(?:final )?(?:verdict|conclusion|结论|判断|判定)[*_`]*\s*[:=]\s*", stripped, regex.IGNORECASE
        )
        begin = label.end() if label else 0
        support = support_of(stripped[begin:])
        if support is not None:
            found.append((support, position + line.index(stripped) + begin))
        position += len(line)
    if not found:
        return no_result(folded, "no verdict [[…]]")
    if any(support != found[0][0] for support, _ in found):
        return Problem("unparsable", "the reply states different verdicts")
    return found[-1]


_KEYED = regex.compile(
    r"^[ \t*_#\-\[(]*(?:S|statement|陈述)\s*(\d{1,4})[*_\])]*\s*[:.、)\-–—]",
    regex.IGNORECASE | regex.MULTILINE,
)


def read_verdicts(text: str, ids: Iterable[int]) -> dict[int, Verdict | Problem]:
    """Verdicts by statement id; an id that the reply passes over is not in the result.

    Ids nobody asked about are ignored; an id with two different verdicts is a problem.
    """
    words, offset = after_thinking(text)
    heads = list(_KEYED.finditer(fold(words)))
    wanted = set(ids)
    found: dict[int, Verdict | Problem] = {}
    ends = [*(head.start() for head in heads[1:]), len(words)]
    for head, end in zip(heads, ends, strict=False):  # without a head there is still the end of the text
        number = int(head[1])
        if number not in wanted:
            continue
        section = words[head.end() : end].rstrip()
        new = read_verdict(section)
        if isinstance(new, Verdict):
            start = offset + head.end() + new.start
            new = Verdict(_LAST_MARK.sub("", section).strip(), new.support, start)
        old = found.setdefault(number, new)
        same = isinstance(old, Verdict) and isinstance(new, Verdict) and old.support == new.support
        if old is not new and not same:
            new = Problem("unparsable", f"statement {number} has two verdicts")
        found[number] = new
    return found


_LAST_MARK = regex.compile(r"\s*\\?[\[【]\\?[\[【][^\[\]【】]*\\?[\]】]\\?[\]】]\s*$")
