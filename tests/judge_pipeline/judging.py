"""Helpers for tests of the judge's core: a plain driver of plans, and a judge that answers by rules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import regex

from judge_pipeline.calls.call import Call, Reply, TokenLogprob
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Dimension, Document, Outcome
from judge_pipeline.documents.chunking import Span

Judge = Callable[[Call], Reply | str]


@dataclass
class PlainDocument:
    """Document without models: chunks of so many characters, segments found by shared words."""

    text: str
    chunk_chars: int = 400
    segment_chars: int = 80
    searches: list[list[str]] = field(default_factory=list)

    @property
    def chunks(self) -> list[Span]:
        return _pieces(self.text, self.chunk_chars)

    def search(self, statements: Iterable[str]) -> list[list[Span]]:
        statements = list(statements)
        self.searches.append(statements)
        pieces = _pieces(self.text, self.segment_chars)
        found = []
        for statement in statements:
            words = set(statement.casefold().split())
            scored = [
                Span(p.start, p.end, float(len(words & set(self.text[p.start : p.end].casefold().split()))))
                for p in pieces
            ]
            found.append(sorted(scored, key=lambda span: (-span.score, span.start))[:5])
        return found


def _pieces(text: str, size: int) -> list[Span]:
    return [Span(start, min(len(text), start + size)) for start in range(0, len(text), size)]


@dataclass
class Run:
    outcomes: list[Outcome]
    calls: list[Call]
    """Distinct calls: what the call store lets through to the engine."""
    rounds: int

    def count(self, template: str) -> int:
        return sum(call.template == template for call in self.calls)


def drive(dimensions: Dimension | list[Dimension], prompt: Prompt, document: Document, judge: Judge) -> Run:
    """Run plans to their end, each distinct call once; outcomes of several dimensions in one list."""
    replies: dict[str, Reply] = {}
    calls: list[Call] = []
    outcomes: list[Outcome] = []
    rounds = 0
    for dimension in dimensions if isinstance(dimensions, list) else [dimensions]:
        plan = dimension.plan(prompt, document)
        try:
            requests = next(plan)
            while True:
                rounds += 1
                for request in requests:
                    key = request.call.key("judge")
                    if key not in replies:
                        answer = judge(request.call)
                        structured = request.call.json_schema is not None
                        replies[key] = (
                            answer if isinstance(answer, Reply) else Reply(text=answer, structured=structured)
                        )
                        calls.append(request.call)
                requests = plan.send([replies[request.call.key("judge")] for request in requests])
        except StopIteration as stop:
            outcomes.extend(stop.value)
    return Run(outcomes, calls, rounds)


def case_of(call: Call) -> str:
    """The last message: the case itself."""
    return call.messages[-1].content


def inside(call: Call, tag: str) -> str:
    """What stands in the last fence of this name."""
    return regex.findall(rf"<{tag}-([0-9a-f]{{6}})>\n(.*?)\n</{tag}-\1>", case_of(call), regex.DOTALL)[-1][1]


@dataclass
class RuleJudge:
    """A judge that reads its prompt: sentences are statements, a word in common is support.

    `rating` is what it rates with; `statements` overrides what it extracts from an answer.
    """

    rating: int = 7
    verdict: str = "full"

    def __call__(self, call: Call) -> str:
        kind = call.template.split(".")[-1]
        structured = call.json_schema is not None
        if kind == "extract":
            return self._list(call, structured)
        if kind == "verify":
            return self._verdict(structured)
        if kind == "verify_many":
            count = len(inside(call, "statements").splitlines())
            return self._verdicts(count, structured)
        return self._rating(call, structured)

    def _list(self, call: Call, structured: bool) -> str:
        name = "key_points" if "<document-" in case_of(call) else "statements"
        source = inside(call, "document" if name == "key_points" else "answer")
        items = [one.strip() + "." for one in regex.split(r"[.!?。]\s*", source) if one.strip()]
        if structured:
            return json.dumps({name: items})
        return "\n".join(f"- {item}" for item in items) or "NONE"

    def _words(self) -> str:
        return {"full": "Fully supported", "partial": "Partially supported", "none": "No support"}[
            self.verdict
        ]

    def _verdict(self, structured: bool) -> str:
        data = {"analysis": "Passage 1.", "verdict": self._words()}
        return json.dumps(data) if structured else f"Passage 1.\n[[{self._words()}]]"

    def _verdicts(self, count: int, structured: bool) -> str:
        if structured:
            one = {"analysis": "Passage 1.", "verdict": self._words()}
            return json.dumps({f"S{n}": one for n in range(1, count + 1)})
        return "\n".join(f"S{n}: Passage 1. [[{self._words()}]]" for n in range(1, count + 1))

    def _rating(self, call: Call, structured: bool) -> str:
        if call.template == "joint.rate":
            names = ("helpfulness", "logicality")
            if structured:
                return json.dumps({name: {"analysis": "Fine.", "rating": self.rating} for name in names})
            return "\n\n".join(f"## {name}\nFine.\nRating: [[{self.rating}]]" for name in names)
        covers = call.template.endswith(".cover")
        if structured:
            return json.dumps(
                {"analysis": "Fine.", **({"missed": [1]} if covers else {}), "rating": self.rating}
            )
        return "Fine.\n" + ("Missed: K1\n" if covers else "") + f"Rating: [[{self.rating}]]"


def tokens(*parts: str | tuple[str, dict[str, float]]) -> list[TokenLogprob]:
    """Tokens from texts, or (text, {alternative: probability}) where the judge hesitated."""
    made = []
    for part in parts:
        text, chances = (part, {part: 1.0}) if isinstance(part, str) else part
        top = {alternative: math.log(chance) for alternative, chance in chances.items()}
        made.append(TokenLogprob(token=text, logprob=top[text], top=top))
    return made
