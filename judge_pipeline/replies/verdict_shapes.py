"""Replies that end in a verdict on a statement (`VerdictShape`), or on each of several (`VerdictsShape`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import regex

from judge_pipeline.calls.call import Reply
from judge_pipeline.documents.language import Language
from judge_pipeline.replies.marks import Problem, fold, own_words
from judge_pipeline.replies.shape import Fields, Shape, object_schema, wrong_schema
from judge_pipeline.replies.verdicts import Verdict, locate_verdict, no_result, read_verdicts, verdict_of

VERDICT_WORDS: dict[Language, dict[Verdict, str]] = {
    "en": {"full": "Fully supported", "partial": "Partially supported", "none": "No support"},
    "zh": {"full": "完全支持", "partial": "部分支持", "none": "不支持"},
}


@dataclass(frozen=True)
class Judged:
    """An analysis and its verdict."""

    analysis: str
    verdict: Verdict


def _verdict_schema(shape: Shape[Any]) -> dict[str, Any]:
    words = list(VERDICT_WORDS[shape.language].values())
    return object_schema({"analysis": shape.analysis_schema(), "verdict": {"type": "string", "enum": words}})


def _judged(data: dict[str, Any]) -> Judged | Problem:
    value = data.get("verdict")
    verdict = verdict_of(value.strip("[]")) if isinstance(value, str) else None
    if verdict is None:
        return wrong_schema(data, "verdict")
    return Judged(str(data.get("analysis", "")).strip(), verdict)


@dataclass(frozen=True)
class VerdictShape(Shape[Judged]):
    """Analysis, then one of the three verdicts."""

    def schema(self) -> dict[str, Any]:
        """Analysis and verdict."""
        return _verdict_schema(self)

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `analysis` and `verdict` (full, partial, none)."""
        verdict = VERDICT_WORDS[self.language][fields["verdict"]]  # type: ignore[index]
        if structured:
            return json.dumps({"analysis": fields["analysis"], "verdict": verdict}, ensure_ascii=False)
        return f"{fields['analysis']}\n[[{verdict}]]"

    def from_text(self, text: str, reply: Reply) -> Judged | Problem:
        """Everything before the verdict's line is the analysis."""
        located = locate_verdict(text)
        if isinstance(located, Problem):
            return located
        verdict, line = located
        return Judged((text[own_words(text)[1] : line] or text).strip(), verdict)

    def from_json(self, data: dict[str, Any], reply: Reply) -> Judged | Problem:
        """The verdict in words, as the text protocol understands them."""
        return _judged(data)


@dataclass(frozen=True)
class VerdictsShape(Shape[dict[int, "Judged | Problem"]]):
    """Analysis and verdict for each of `count` statements, keyed S1, S2, …; one passed over is not in the result."""

    count: int = 1

    def schema(self) -> dict[str, Any]:
        """One object a statement, under its key: a constrained judge cannot pass one over."""
        return object_schema({f"S{number}": _verdict_schema(self) for number in range(1, self.count + 1)})

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `analysis` and `verdict`, each one line a statement."""
        words = [VERDICT_WORDS[self.language][word.strip()] for word in fields["verdict"].splitlines()]  # type: ignore[index]
        pairs = list(zip(fields["analysis"].splitlines(), words, strict=True))
        if structured:
            data = {f"S{n}": {"analysis": a, "verdict": v} for n, (a, v) in enumerate(pairs, start=1)}
            return json.dumps(data, ensure_ascii=False)
        return "\n".join(f"S{n}: {a} [[{v}]]" for n, (a, v) in enumerate(pairs, start=1))

    def from_text(self, text: str, reply: Reply) -> dict[int, Judged | Problem] | Problem:
        """Verdicts by number, from lines that begin with it."""
        found = read_verdicts(text, range(1, self.count + 1))
        if not found:
            return no_result(fold(text), "no line 'S1: … [[verdict]]'")
        return {
            number: value if isinstance(value, Problem) else Judged(_without_mark(value[1]), value[0])
            for number, value in found.items()
        }

    def from_json(self, data: dict[str, Any], reply: Reply) -> dict[int, Judged | Problem] | Problem:
        """Verdicts by number, from the objects under their keys."""
        parts = {number: data.get(f"S{number}") for number in range(1, self.count + 1)}
        found = {number: _judged(part) for number, part in parts.items() if isinstance(part, dict)}
        return found or wrong_schema(data, "S1")


def _without_mark(section: str) -> str:
    return regex.sub(r"\s*\\?[\[【]\\?[\[【][^\[\]【】]*\\?[\]】]\\?[\]】]\s*$", "", section).strip()
