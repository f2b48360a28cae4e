"""From the judge's words to a rating, a verdict, or a typed problem.

In: the text of a reply. Out: `Rating` (points 0–10 and where they stand in the text), a `Verdict`, or a
`Problem`. `marks` says which of several statements of a result counts. Nothing is guessed: what a sane reader
could not settle is `unparsable`, and a rating beyond 0–10 is `out_of_range`, never clipped.

Accepted as 8: [[8]], [[8.0]], [[8/10]], [[8 points]], [[8分]], [[八]], [[８]], 【【8】】, "Rating: [[8]]/10",
"**Score:** 8 out of 10", "评分：8". Refused: [[85]], [[-1]], [[8/100]], [[7-8]], [[N/A]].
Support: [[Not fully supported]] is partial, never full; [[Supported]] and [[Full support]] are full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import regex

from judge_pipeline.calls.call import Reply
from judge_pipeline.replies.marks import Mark, Problem, choose, find_marks, fold, label_pattern, own_words

Verdict = Literal["full", "partial", "none"]

VERDICT_POINTS: dict[Verdict, float] = {"full": 1.0, "partial": 0.5, "none": 0.0}
"""What each verdict counts (LongReward, section 3.1)."""


@dataclass(frozen=True)
class Rating:
    """Points 0–10 as printed; the number is `text[start:end]` of the reply."""

    points: float
    start: int
    end: int


_RATING_WORDS = r"rating|score|grade|评分|得分|分数|打分|总分|评价"
_RATING_LABEL = label_pattern(_RATING_WORDS)
_VERDICT_LABEL = label_pattern(
    r"verdict|conclusion|judge?ment|support(?: level)?|rating|结论|判断|判定|裁定|评级|支持程度|评价"
)
_NUMBER = r"[+-]?\d+(?:[.,]\d+)?"
_INNER = regex.compile(
    rf"\s*(?:(?:{_RATING_WORDS})\s*[:=]?\s*)?(?P<number>{_NUMBER}|[零〇一二两三四五六七八九十])\s*"
    r"(?:(?:/|out of)\s*(?P<scale>\d+)|points?|分)?\s*\.?\s*",
    regex.IGNORECASE,
)
_PLAIN = regex.compile(
    rf"^[ \t*_#>-]*(?:(?:final|overall|my|总体|最终)\s*)*(?:{_RATING_WORDS})[\s*_`]*(?:is|of|为|是)?[\s*_`]*[:=]?[\s*_`\[(]*"
    rf"(?P<number>{_NUMBER})(?!\d)(?![.,]\d)(?P<rest>[^\n]*)$",
    regex.IGNORECASE | regex.MULTILINE,
)
_SCALE = regex.compile(r"[\s*_`\])]*(?:/|out of)\s*(\d+)", regex.IGNORECASE)
_RANGE = regex.compile(r"[\s*_`\])]*(?:[-–—~]|to\b|or\b|至|到|或)\s*\d", regex.IGNORECASE)
_CHINESE_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九十")} | {"〇": 0, "两": 2}

_REFUSAL = regex.compile(
    r"\s*(?:i['’]?m sorry|sorry|i apologi[sz]e|unfortunately,? i|i (?:can(?:no|['’])t|won['’]t|am unable|must decline)"
    r"|i['’]m (?:unable|not able)|as an ai|i am not able|很?抱歉|对不起|我?无法|我不能|作为一个?(?:ai|人工智能|语言模型))"
    r"|.{0,200}(?:content (?:management )?policy|content[ _-]filter|was filtered|has been blocked|safety (?:system|polic)"
    r"|敏感内容|不安全(?:内容)?|内容安全|违规内容|不当内容)",
    regex.IGNORECASE | regex.DOTALL,
)


def points_of(raw: str) -> float | Problem | None:
    """Points of what stands inside `[[…]]` (folded); None when it is no rating at all."""
    match = _INNER.fullmatch(raw)
    if match is None:
        return None
    return _points(match["number"], match["scale"])


def _points(number: str, scale: str | None) -> float | Problem:
    if scale is not None and scale != "10":
        return Problem("unparsable", f"rating {number}/{scale} is on another scale than 0–10")
    value = float(_CHINESE_DIGITS[number]) if number in _CHINESE_DIGITS else float(number.replace(",", "."))
    if not 0 <= value <= 10:
        return Problem("out_of_range", f"rating {number} is outside 0–10")
    return value


def read_rating(text: str) -> Rating | Problem:
    """The rating a reply states, in points 0–10."""
    words, offset = own_words(text)
    folded = fold(words)
    chosen = choose(find_marks(folded, _RATING_LABEL), lambda mark: points_of(mark.inner))
    if isinstance(chosen, Problem):
        return chosen
    if chosen is not None:
        points, mark = chosen
        number = regex.search(_NUMBER, mark.inner)
        start, end = (number.start(), number.end()) if number else (0, len(mark.inner))
        return Rating(points, offset + mark.start + start, offset + mark.start + end)
    return _read_plain_rating(folded, offset)


def _read_plain_rating(folded: str, offset: int) -> Rating | Problem:
    """A rating without brackets: a labelled line, or a reply that is nothing but the number."""
    found: list[tuple[float | Problem, int, int]] = []
    bare = _INNER.fullmatch(folded.strip(" \t\n*_`"))
    if bare is not None:
        start = folded.find(bare["number"])
        found.append((_points(bare["number"], bare["scale"]), start, start + len(bare["number"])))
    for match in _PLAIN.finditer(folded):
        if _RANGE.match(match["rest"]) or "[[" in match.group():
            return Problem("unparsable", f"no single rating in '{match.group().strip()[:80]}'")
        scale = _SCALE.match(match["rest"])
        found.append(
            (_points(match["number"], scale and scale[1]), match.start("number"), match.end("number"))
        )
    if not found:
        return no_result(folded, "no rating [[0–10]]")
    if any(value != found[0][0] for value, _, _ in found):
        return Problem("unparsable", "the reply states different ratings")
    value, start, end = found[-1]
    return value if isinstance(value, Problem) else Rating(value, offset + start, offset + end)


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
_VERDICTS: tuple[tuple[Verdict, regex.Pattern[str]], ...] = (
    ("partial", regex.compile(_PARTIAL, regex.IGNORECASE)),
    ("none", regex.compile(_NONE, regex.IGNORECASE)),
    ("full", regex.compile(_FULL, regex.IGNORECASE)),
)


def verdict_of(raw: str) -> Verdict | None:
    """The verdict in a few words ("Fully supported", "不支持"); None for anything else, never a guess."""
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
    """The verdict a reply states about one statement."""
    found = locate_verdict(text)
    return found if isinstance(found, Problem) else found[0]


def locate_verdict(text: str) -> tuple[Verdict, int] | Problem:
    """The verdict, and where in the text its mark or line begins (what stands before is the analysis)."""
    words, offset = own_words(text)
    folded = fold(words)

    def understand(mark: Mark) -> Verdict | Problem | None:
        verdict = verdict_of(mark.inner)
        if verdict is None and mark.labelled:
            return Problem("unparsable", f"no verdict is called [[{mark.inner}]]")
        return verdict

    chosen: tuple[Verdict, Mark] | Problem | None = choose(find_marks(folded, _VERDICT_LABEL), understand)
    if isinstance(chosen, Problem):
        return chosen
    if chosen is not None:
        return chosen[0], offset + folded.rfind("\n", 0, chosen[1].start) + 1
    return _plain_verdict(folded, offset)


def _plain_verdict(folded: str, offset: int) -> tuple[Verdict, int] | Problem:
    """A verdict without brackets: a line that is nothing else, labelled or not."""
    found: list[tuple[Verdict, int]] = []
    position = 0
    for line in folded.splitlines(keepends=True):
        stripped = line.strip(" \t\n*_#-")
        label = regex.match(
            r"(?:final )?(?:verdict|conclusion|结论|判断|判定)[*_`]*\s*[:=]\s*", stripped, regex.IGNORECASE
        )
        verdict = verdict_of(stripped[label.end() :] if label else stripped)
        if verdict is not None:
            found.append((verdict, offset + position))
        position += len(line)
    if not found:
        return no_result(folded, "no verdict [[…]]")
    if any(verdict != found[0][0] for verdict, _ in found):
        return Problem("unparsable", "the reply states different verdicts")
    return found[-1]


_KEYED = regex.compile(
    r"^[ \t*_#\-\[(]*(?:S|statement|陈述)\s*(\d{1,4})[*_\])]*\s*[:.、)\-–—]",
    regex.IGNORECASE | regex.MULTILINE,
)


def read_verdicts(text: str, ids: Iterable[int]) -> dict[int, tuple[Verdict, str] | Problem]:
    """Verdict and analysis by statement id; an id that the reply passes over is not in the result.

    Ids nobody asked about are ignored; an id with two different verdicts is a problem.
    """
    words, _ = own_words(text)
    folded = fold(words)
    heads = list(_KEYED.finditer(folded))
    wanted = set(ids)
    found: dict[int, tuple[Verdict, str] | Problem] = {}
    ends = [*(head.start() for head in heads[1:]), len(words)]
    for head, end in zip(heads, ends, strict=False):  # without a head there is still the end of the text
        number = int(head[1])
        if number not in wanted:
            continue
        section = words[head.end() : end]
        located = locate_verdict(section)
        new: tuple[Verdict, str] | Problem = (
            located if isinstance(located, Problem) else (located[0], section.strip())
        )
        old = found.get(number)
        if old is not None and (isinstance(old, Problem) or isinstance(new, Problem) or old[0] != new[0]):
            new = Problem("unparsable", f"statement {number} has two verdicts")
        found[number] = new
    return found


def no_result(text: str, expected: str) -> Problem:
    """Why a reply holds nothing: a refusal or a filter's notice, else unparsable."""
    if _REFUSAL.match(fold(text)):
        return Problem("refused", text.strip()[:200])
    return Problem("unparsable", f"{expected} in: {text.strip()[:200]!r}")


def check_reply(reply: Reply) -> Problem | None:
    """What is wrong with a reply before anybody reads it: failed, filtered, empty."""
    if reply.failure is not None:
        return Problem(reply.failure, reply.detail)
    if reply.finish_reason == "content_filter":
        return Problem("refused", "the engine's content filter stopped the reply")
    if not own_words(reply.text)[0].strip():
        cut = reply.finish_reason == "length"  # all of it went into a reasoning block, or white space
        return Problem("truncated" if cut else "empty_reply", "the reply holds no text")
    return None
