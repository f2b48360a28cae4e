"""Replies that end in a rating: one (`RatingShape`), or one for each of several dimensions (`JointShape`).

Accepted as 8: [[8]], [[8.0]], [[8/10]], [[8 points]], [[8分]], [[八]], [[８]], 【【8】】, "Rating: [[8]]/10",
"**Score:** 8 out of 10", "评分：8". Refused: [[85]], [[-1]], [[8/100]], [[7-8]], [[N/A]]. What a sane reader could
not settle is `unparsable`, and a rating beyond 0–10 is `out_of_range`, never clipped; `marks` says which of several
ratings counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import regex

from judge_pipeline.calls.call import Reply
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.documents.words import Language
from judge_pipeline.replies.expected import Expectation, expected_rating
from judge_pipeline.replies.marks import Problem, choose, find_marks, fold, label_pattern
from judge_pipeline.replies.shape import Fields, Shape, no_result, object_schema, wrong_schema

RATING_LABEL: dict[Language, str] = {"en": "Rating", "zh": "评分"}
MISSED_LABEL: dict[Language, str] = {"en": "Missed", "zh": "遗漏"}
NOTHING_MISSED: dict[Language, str] = {"en": "none", "zh": "无"}

RATINGS = {"type": "integer", "enum": list(range(11))}
"""Integers 0–10, as a list of values: every constraining engine holds a model to that."""


@dataclass(frozen=True)
class Rating:
    """Points 0–10 as printed at `text[start:end]` of the reply, and the analysis before them."""

    points: float
    start: int
    end: int
    analysis: str = ""
    expectation: Expectation | None = None
    """The finer rating, where the reply came with log-probabilities to tell it."""
    missed: tuple[int, ...] | None = None
    """Numbers of the key points named as missed; None where none were asked."""

    def refined(self, reply: Reply) -> Rating:
        """The same with its expected value."""
        found = expected_rating(reply.text, self.points, (self.start, self.end), reply.logprobs)
        return replace(self, expectation=found)


@dataclass(frozen=True)
class RatingShape(Shape[Rating]):
    """Analysis, then (where there are key points) the numbers of those missed, then a rating 0–10."""

    key_points: int | None = None
    """How many key points the answer is held against; None where the prompt has none."""

    def schema(self) -> dict[str, Any]:
        """Analysis, missed (with key points), rating."""
        if not self.key_points:
            return self.analysed(rating=RATINGS)
        number = {"type": "integer", "minimum": 1, "maximum": self.key_points}
        missed = {"type": "array", "items": number, "maxItems": self.key_points}
        return self.analysed(missed=missed, rating=RATINGS)

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `analysis`, `rating` and, in prompts with key points, `missed` ("2, 5" or empty)."""
        asked = "missed" in fields
        missed = [int(number) for number in regex.findall(r"\d+", fields.get("missed", ""))]
        if structured:
            data = {"analysis": fields["analysis"], **({"missed": missed} if asked else {})}
            return json.dumps({**data, "rating": int(fields["rating"])}, ensure_ascii=False)
        lines = [fields["analysis"]]
        if asked:
            numbers = ", ".join(f"K{number}" for number in missed) or NOTHING_MISSED[self.language]
            lines.append(f"{MISSED_LABEL[self.language]}: {numbers}")
        return "\n".join([*lines, f"{RATING_LABEL[self.language]}: [[{fields['rating']}]]"])

    def from_text(self, text: str, reply: Reply) -> Rating | Problem:
        """Everything before the rating's line is the analysis."""
        rating = read_rating(text)
        if isinstance(rating, Problem):
            return rating
        line = _MISSED.search(fold(rating.analysis)) if self.key_points is not None else None
        if line is not None:
            missed = self._known(int(number) for number in regex.findall(r"\d+", line[1]))
            rating = replace(rating, missed=missed, analysis=rating.analysis[: line.start()].strip())
        return rating.refined(reply)

    def from_json(self, data: dict[str, Any], reply: Reply) -> Rating | Problem:
        """The rating is looked up in the reply's text too, where the expected score needs its place."""
        places = list(_JSON_NUMBER.finditer(reply.text))
        rating = _json_rating(data, reply, places[-1] if places else None)
        if rating is None:
            return wrong_schema(data, "rating")
        missed = data.get("missed") if self.key_points is not None else None
        if isinstance(rating, Problem) or not isinstance(missed, list):
            return rating
        return replace(rating, missed=self._known(number for number in missed if type(number) is int))

    def _known(self, numbers: Any) -> tuple[int, ...]:
        return tuple(sorted({n for n in numbers if 1 <= n <= (self.key_points or 0)}))


@dataclass(frozen=True)
class JointShape(Shape[dict[str, "Rating | Problem"]]):
    """Several ratings of one answer, each with an analysis of its own."""

    names: tuple[str, ...] = ("helpfulness", "logicality")

    def schema(self) -> dict[str, Any]:
        """For each name its analysis and its rating."""
        return object_schema(dict.fromkeys(self.names, self.analysed(rating=RATINGS)))

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `NAME analysis` and `NAME rating`."""
        said = {name: (fields[f"{name} analysis"], fields[f"{name} rating"]) for name in self.names}
        if structured:
            data = {name: {"analysis": analysis, "rating": int(n)} for name, (analysis, n) in said.items()}
            return json.dumps(data, ensure_ascii=False)
        label = RATING_LABEL[self.language]
        return "\n\n".join(f"## {name}\n{text}\n{label}: [[{n}]]" for name, (text, n) in said.items())

    def from_text(self, text: str, reply: Reply) -> dict[str, Rating | Problem] | Problem:
        """Each name's section, from its heading to the next one's, read as one rating."""
        words, offset = after_thinking(text)
        heads = {}
        for name in self.names:
            found = list(regex.finditer(rf"^#+ *{name}\b[^\n]*\n", words, regex.IGNORECASE | regex.MULTILINE))
            if len(found) != 1:
                return no_result(fold(words), f"not one section '## {name}'")
            heads[name] = found[0]
        ends = [*sorted(head.start() for head in heads.values()), len(words)]
        result: dict[str, Rating | Problem] = {}
        for name, head in heads.items():
            rating = read_rating(words[head.end() : next(end for end in ends if end > head.start())])
            if isinstance(rating, Rating):
                moved = offset + head.end()
                rating = replace(rating, start=rating.start + moved, end=rating.end + moved).refined(reply)
            result[name] = rating
        return result

    def from_json(self, data: dict[str, Any], reply: Reply) -> dict[str, Rating | Problem] | Problem:
        """Each name's object; ratings are found in the text in the order of the schema."""
        places: list[Any] = list(_JSON_NUMBER.finditer(reply.text))
        if len(places) != len(self.names) or list(data)[: len(self.names)] != list(self.names):
            places = [None] * len(self.names)
        return {
            name: _json_rating(data.get(name), reply, place) or wrong_schema(data, name)
            for name, place in zip(self.names, places, strict=True)
        }


_MISSED = regex.compile(
    r"^[ \t*_#-]*(?:missed|missing|遗漏|缺失)[*_]*\s*:([^\n]*)\s*\Z", regex.IGNORECASE | regex.MULTILINE
)
_JSON_NUMBER = regex.compile(r'(?<!\\)"rating"\s*:\s*"?(-?\d+(?:\.\d+)?)')


def _json_rating(part: Any, reply: Reply, place: regex.Match[str] | None) -> Rating | Problem | None:
    """The rating of a JSON object, whose number stands at `place` of the reply; None where it holds none."""
    points = json_points(part.get("rating")) if isinstance(part, dict) else None
    if points is None or isinstance(points, Problem):
        return points
    start, end = place.span(1) if place else (0, 0)
    rating = Rating(points, start, end, str(part.get("analysis", "")).strip())
    return rating.refined(reply) if place else rating


def json_points(value: Any) -> float | Problem | None:
    """Points of a JSON value: a number, or a string that the text protocol would take for a rating."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return points_of(fold(value).strip("[] "))
    if value != value or not 0 <= value <= 10:
        return Problem("out_of_range", f"rating {value} is outside 0–10")
    return float(value)


_RATING_WORDS = r"rating|score|grade|评分|得分|分数|打分|总分|评价"
_RATING_LABEL = label_pattern(_RATING_WORDS)
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


def points_of(raw: str) -> float | Problem | None:
    """Points of what stands inside `[[…]]` (folded); None when it is no rating at all."""
    match = _INNER.fullmatch(raw)
    return _points(match["number"], match["scale"]) if match else None


def _points(number: str, scale: str | None) -> float | Problem:
    if scale is not None and scale != "10":
        return Problem("unparsable", f"rating {number}/{scale} is on another scale than 0–10")
    value = float(_CHINESE_DIGITS[number]) if number in _CHINESE_DIGITS else float(number.replace(",", "."))
    if not 0 <= value <= 10:
        return Problem("out_of_range", f"rating {number} is outside 0–10")
    return value


def read_rating(text: str) -> Rating | Problem:
    """The rating a reply states, in points 0–10; what stands before its line is the analysis."""
    words, offset = after_thinking(text)
    folded = fold(words)
    chosen = choose(find_marks(folded, _RATING_LABEL), lambda mark: points_of(mark.inner))
    if chosen is None:
        located = _plain_rating(folded)
    elif isinstance(chosen, Problem):
        return chosen
    else:
        points, mark = chosen
        number = regex.search(_NUMBER, mark.inner)
        start, end = number.span() if number else (0, len(mark.inner))
        located = points, mark.start + start, mark.start + end
    if isinstance(located, Problem):
        return located
    points, start, end = located
    analysis = words[: words.rfind("\n", 0, start) + 1] or text
    return Rating(points, offset + start, offset + end, analysis.strip())


def _plain_rating(folded: str) -> tuple[float, int, int] | Problem:
    """A rating without brackets, and its place: a labelled line, or a reply that is nothing but the number."""
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
    return value if isinstance(value, Problem) else (value, start, end)
