"""Replies that end in a rating: one (`RatingShape`), or one for each of several dimensions (`JointShape`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import regex

from judge_pipeline.calls.call import Reply
from judge_pipeline.documents.language import Language
from judge_pipeline.replies.expected import Expectation, expected_rating
from judge_pipeline.replies.marks import Problem, fold, own_words
from judge_pipeline.replies.shape import Fields, Shape, object_schema, wrong_schema
from judge_pipeline.replies.verdicts import Rating, no_result, points_of, read_rating

RATING_LABEL: dict[Language, str] = {"en": "Rating", "zh": "评分"}
MISSED_LABEL: dict[Language, str] = {"en": "Missed", "zh": "遗漏"}
NOTHING_MISSED: dict[Language, str] = {"en": "none", "zh": "无"}


@dataclass(frozen=True)
class Rated:
    """An analysis and its rating; `missed` holds the key points named as missed, None where none were asked."""

    analysis: str
    rating: Rating
    expectation: Expectation | None = None
    missed: tuple[int, ...] | None = None


RATINGS = {"type": "integer", "enum": list(range(11))}
"""Integers 0–10, as a list of values: every constraining engine holds a model to that."""


@dataclass(frozen=True)
class RatingShape(Shape[Rated]):
    """Analysis, then (where there are key points) the numbers of those missed, then a rating 0–10."""

    key_points: int | None = None
    """How many key points the answer is held against; None where the prompt has none."""
    field: str = "rating"

    def schema(self) -> dict[str, Any]:
        """Analysis, missed (with key points), rating."""
        properties: dict[str, Any] = {"analysis": self.analysis_schema()}
        if self.key_points:
            number = {"type": "integer", "minimum": 1, "maximum": self.key_points}
            properties["missed"] = {"type": "array", "items": number, "maxItems": min(self.key_points, 60)}
        return object_schema({**properties, "rating": RATINGS})

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

    def from_text(self, text: str, reply: Reply) -> Rated | Problem:
        """Everything before the rating's line is the analysis."""
        rating = read_rating(text)
        if isinstance(rating, Problem):
            return rating
        missed = None
        cut = text.rfind("\n", 0, rating.start) + 1
        analysis = text[own_words(text)[1] : cut] or text
        if self.key_points is not None:
            line = _MISSED.search(fold(analysis))
            if line is not None:
                missed = self._known(int(n) for n in regex.findall(r"\d+", line[1]))
                analysis = analysis[: line.start()]
        return Rated(analysis.strip(), rating, expected_rating(text, rating, reply.logprobs), missed)

    def from_json(self, data: dict[str, Any], reply: Reply) -> Rated | Problem:
        """The rating is looked up in the reply's text too, where the expected score needs its place."""
        points = json_points(data.get(self.field))
        if isinstance(points, Problem):
            return points
        if points is None:
            return wrong_schema(data, self.field)
        place = list(_json_number(self.field).finditer(reply.text))
        rating = Rating(points, *place[-1].span(1)) if place else Rating(points, 0, 0)
        expectation = expected_rating(reply.text, rating, reply.logprobs) if place else None
        missed = data.get("missed") if self.key_points is not None else None
        known = self._known(n for n in missed if type(n) is int) if isinstance(missed, list) else None
        return Rated(str(data.get("analysis", "")).strip(), rating, expectation, known)

    def _known(self, numbers: Any) -> tuple[int, ...]:
        return tuple(sorted({n for n in numbers if 1 <= n <= (self.key_points or 0)}))


_MISSED = regex.compile(
    r"^[ \t*_#-]*(?:missed|missing|遗漏|缺失)[*_]*\s*:([^\n]*)\s*\Z", regex.IGNORECASE | regex.MULTILINE
)


def _json_number(name: str) -> regex.Pattern[str]:
    return regex.compile(rf'(?<!\\)"{name}"\s*:\s*"?(-?\d+(?:\.\d+)?)')


def json_points(value: Any) -> float | Problem | None:
    """Points of a JSON value: a number, or a string that the text protocol would take for a rating."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return points_of(fold(value).strip("[] "))
    if value != value or not 0 <= value <= 10:
        return Problem("out_of_range", f"rating {value} is outside 0–10")
    return float(value)


@dataclass(frozen=True)
class JointShape(Shape[dict[str, "Rated | Problem"]]):
    """Several ratings of one answer, each with an analysis of its own."""

    names: tuple[str, ...] = ("helpfulness", "logicality")

    def schema(self) -> dict[str, Any]:
        """For each name its analysis and its rating."""
        each = object_schema({"analysis": self.analysis_schema(), "rating": RATINGS})
        return object_schema(dict.fromkeys(self.names, each))

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `NAME analysis` and `NAME rating`."""
        if structured:
            data = {
                name: {"analysis": fields[f"{name} analysis"], "rating": int(fields[f"{name} rating"])}
                for name in self.names
            }
            return json.dumps(data, ensure_ascii=False)
        return "\n\n".join(
            f"## {name}\n{fields[f'{name} analysis']}\n{RATING_LABEL[self.language]}: [[{fields[f'{name} rating']}]]"
            for name in self.names
        )

    def from_text(self, text: str, reply: Reply) -> dict[str, Rated | Problem] | Problem:
        """Each name's section, from its heading to the next one's, read as one rating."""
        heads = {}
        for name in self.names:
            found = list(regex.finditer(rf"^#+ *{name}\b[^\n]*\n", text, regex.IGNORECASE | regex.MULTILINE))
            if len(found) != 1:
                return no_result(fold(text), f"not one section '## {name}'")
            heads[name] = found[0]
        ends = sorted(head.start() for head in heads.values())
        result: dict[str, Rated | Problem] = {}
        for name, head in heads.items():
            end = next((end for end in ends if end > head.start()), len(text))
            section = text[head.end() : end]
            rating = read_rating(section)
            if isinstance(rating, Problem):
                result[name] = rating
                continue
            placed = Rating(rating.points, rating.start + head.end(), rating.end + head.end())
            analysis = section[: section.rfind("\n", 0, rating.start) + 1] or section
            result[name] = Rated(analysis.strip(), placed, expected_rating(text, placed, reply.logprobs))
        return result

    def from_json(self, data: dict[str, Any], reply: Reply) -> dict[str, Rated | Problem] | Problem:
        """Each name's object; ratings are found in the text in the order of the schema."""
        places = list(_json_number("rating").finditer(reply.text))
        result: dict[str, Rated | Problem] = {}
        for index, name in enumerate(self.names):
            part = data.get(name)
            points = json_points(part.get("rating")) if isinstance(part, dict) else None
            if isinstance(points, Problem):
                result[name] = points
                continue
            if not isinstance(part, dict) or points is None:
                result[name] = wrong_schema(data, name)
                continue
            ordered = len(places) == len(self.names) and list(data)[: len(self.names)] == list(self.names)
            rating = Rating(points, *places[index].span(1)) if ordered else Rating(points, 0, 0)
            expectation = expected_rating(reply.text, rating, reply.logprobs) if ordered else None
            result[name] = Rated(str(part.get("analysis", "")).strip(), rating, expectation)
        return result
