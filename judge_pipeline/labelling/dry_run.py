"""`--dry-run`: what a labelling run would ask and cost, without asking.

Every plan is driven to its end with stand-in replies made from each call's JSON schema, so that the calls are the
ones a run would make; only how many statements and key points a judge finds is assumed: one statement a sentence of
the answer, and as many key points as `KEY_POINTS`. Evidence is the document's first segments instead of the best,
which are as long. Tokens are counted with the chunking tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from judge_pipeline.calls.call import Call, CallUsage, Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Dimension, Plan
from judge_pipeline.documents.chunking import Span
from judge_pipeline.documents.indexed import DocumentIndexer, IndexedDocument
from judge_pipeline.engines.run_calls import Prices

KEY_POINTS = 5
"""Key points assumed in a chunk of the document."""
WORDS_TOKENS = 60
"""Tokens assumed for an analysis, a statement's worth of text."""
BAR = 40


@dataclass
class Forecast:
    """Calls and tokens by template, and what was seen on the way."""

    calls: Counter[str] = field(default_factory=Counter)
    input_tokens: Counter[str] = field(default_factory=Counter)
    output_tokens: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Call] = field(default_factory=dict)
    document_tokens: dict[bytes, int] = field(default_factory=dict)
    """Length of each distinct document, by a hash of its text."""
    prompts: int = 0
    answers: int = 0
    keys: set[str] = field(default_factory=set)

    @property
    def usage(self) -> CallUsage:
        """All tokens."""
        return CallUsage(
            input_tokens=sum(self.input_tokens.values()), output_tokens=sum(self.output_tokens.values())
        )


def stand_in(schema: dict[str, Any], items: Sequence[str]) -> Any:
    """A value that a schema allows; arrays of texts hold `items`."""
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        return {name: stand_in(part, items) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        part = schema.get("items", {})
        if part.get("type") == "string":
            return list(items)[: schema.get("maxItems", len(items))]
        return [stand_in(part, items) for _ in range(schema.get("minItems", 0))]
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    if kind == "boolean":
        return False
    return "stand-in"


class PlanDriver:
    """Drives plans with stand-in replies and counts."""

    def __init__(self, builder: DocumentIndexer, forecast: Forecast) -> None:
        self.builder, self.forecast = builder, forecast

    def drive(self, plan: Plan, prompt: Prompt) -> None:
        """One plan to its end."""
        try:
            requests = next(plan)
            while True:
                requests = plan.send(
                    [self._reply(request.call, request.answers, prompt) for request in requests]
                )
        except StopIteration:
            return

    def _reply(self, call: Call, answers: tuple[int, ...], prompt: Prompt) -> Reply:
        self.saw(call, answers)
        items = self._items(call, answers, prompt)
        text = json.dumps(stand_in(call.json_schema or {}, items), ensure_ascii=False)
        key = call.key("")
        if key not in self.forecast.keys:
            self.forecast.keys.add(key)
            self._count(call, text)
        return Reply(text=text, structured=True)

    def saw(self, call: Call, answers: tuple[int, ...]) -> None:
        """Hook for those who want the calls themselves; here they are only counted."""

    def _items(self, call: Call, answers: tuple[int, ...], prompt: Prompt) -> list[str]:
        """What a list in the reply would hold: an answer's sentences, or key points."""
        if "statement" in json.dumps(call.json_schema) and len(answers) == 1:
            from sentencex import segment  # a tenth of a second, which `--help` need not wait for

            sentences = segment("en", prompt.responses[answers[0]].text)
            return [sentence.strip() for sentence in sentences if sentence.strip()]
        return [f"key point {number}" for number in range(1, KEY_POINTS + 1)]

    def _count(self, call: Call, reply: str) -> None:
        forecast, count = self.forecast, self.builder.tokenizer.offsets
        forecast.calls[call.template] += 1
        forecast.input_tokens[call.template] += sum(
            len(count(message.content)) + 4 for message in call.messages
        )
        analyses = reply.count("stand-in")
        forecast.output_tokens[call.template] += min(
            len(count(reply)) + WORDS_TOKENS * analyses, call.sampling.max_tokens
        )
        forecast.examples.setdefault(call.template, call)


class Unsearched:
    """A document whose first segments stand in for those a search would find: nothing is embedded."""

    def __init__(self, document: IndexedDocument, top_k: int) -> None:
        self.text, self.chunks = document.text, document.chunks
        self._first = list(document.segments[:top_k])

    def search(self, statements: Sequence[str]) -> list[list[Span]]:
        """The same segments for every statement."""
        return [self._first for _ in statements]


def forecast_run(
    prompts: Iterable[Prompt], dimensions: Sequence[Dimension], builder: DocumentIndexer
) -> Forecast:
    """Count the calls and tokens of labelling `prompts`."""
    forecast = Forecast()
    driver = PlanDriver(builder, forecast)
    for prompt in prompts:
        document = builder.build(prompt.context)
        forecast.document_tokens[hashlib.sha256(prompt.context.encode()).digest()] = document.tokens
        forecast.prompts += 1
        forecast.answers += len(prompt.responses)
        for dimension in dimensions:
            driver.drive(dimension.plan(prompt, Unsearched(document, builder.top_k)), prompt)
    return forecast


def histogram(values: Sequence[int], rows: int = 10) -> list[str]:
    """Document lengths as bars of text."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // rows))
    counts = Counter((value - low) // width for value in values)
    most = max(counts.values())
    return [
        f"{low + index * width:>9,}–{low + (index + 1) * width - 1:<9,} "
        f"{'█' * max(bool(counts[index]), round(BAR * counts[index] / most)):<{BAR}} {counts[index]}"
        for index in range(-(-(high - low + 1) // width))
    ]


def render_forecast(forecast: Forecast, prices: Prices) -> str:
    """The text that `--dry-run` prints."""
    lines: list[str] = []
    for template, call in sorted(forecast.examples.items()):
        lines += [f"──── {template}", ""]
        for message in call.messages:
            lines += [f"[{message.role}]", message.content, ""]
    lengths = list(forecast.document_tokens.values())
    lines += [f"documents: {len(lengths)}, tokens (median {statistics.median(lengths):,.0f})"]
    lines += [*histogram(lengths), ""]
    lines += [f"{'template':<32}{'calls':>10}{'input tokens':>16}{'output tokens':>16}"]
    for template, calls in sorted(forecast.calls.items()):
        tokens_in, tokens_out = forecast.input_tokens[template], forecast.output_tokens[template]
        lines.append(f"{template:<32}{calls:>10,}{tokens_in:>16,}{tokens_out:>16,}")
    usage = forecast.usage
    total = sum(forecast.calls.values())
    lines.append(f"{'all':<32}{total:>10,}{usage.input_tokens:>16,}{usage.output_tokens:>16,}")
    lines.append(f"for {forecast.answers:,} answers to {forecast.prompts:,} prompts; nothing was asked")
    cost = prices.cost(usage)
    if cost is None:
        lines.append("give --price-input and --price-output (per million tokens) to see the money")
    else:
        lines.append(f"cost expected: {cost:.4f} (without any discount for cached input)")
    return "\n".join(lines)


def dry_run(
    prompts: Iterable[Prompt], dimensions: Sequence[Dimension], builder: DocumentIndexer, prices: Prices
) -> int:
    """Print the forecast."""
    print("reading documents, driving plans; no judge is asked", file=sys.stderr)
    print(render_forecast(forecast_run(prompts, dimensions, builder), prices))
    return 0
