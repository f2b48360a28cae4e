"""What a labelling run will ask, found out before the first call: whether it fits the judge's window, what it costs.

The first calls of each plan hold the longest texts (a chunk of the document, a whole answer): those are held against
the window (`check_overflow`). A model in this process counts them with its own tokenizer; for an endpoint they are
estimated with the chunking tokenizer. Nothing is ever cut.

For `--dry-run` every plan is driven to its end with stand-in replies made from each call's JSON schema, so that the
calls are the ones a run would make; only how many statements and key points a judge finds is assumed: one statement a
sentence of the answer, and as many key points as `KEY_POINTS`. Evidence is the document's first segments instead of
the best, which are as long.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from judge_pipeline.calls.call import Call, CallUsage, Reply
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.window import Overflow, over_window
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.documents.chunking import FastTokenizer, Span
from judge_pipeline.documents.indexed import DocumentIndexer, IndexedDocument
from judge_pipeline.documents.words import sentence_spans
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.run_calls import Prices

KEY_POINTS = 5
"""Key points assumed in a chunk of the document."""
WORDS_TOKENS = 60
"""Tokens assumed for an analysis, a statement's worth of text."""
BAR = 40


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


class Forecast:
    """Drives plans with stand-in replies, and counts calls and tokens by template."""

    def __init__(self, indexer: DocumentIndexer) -> None:
        self.indexer = indexer
        self.calls: Counter[str] = Counter()
        self.input_tokens: Counter[str] = Counter()
        self.output_tokens: Counter[str] = Counter()
        self.examples: dict[str, Call] = {}
        self.document_tokens: dict[bytes, int] = {}
        """Length of each distinct document, by a hash of its text."""
        self.prompts = self.answers = 0
        self._keys: set[str] = set()

    def add(self, prompt: Prompt, dimensions: Sequence[Dimension]) -> None:
        """Count what labelling one prompt asks."""
        document = self.indexer.build(prompt.context)
        self.document_tokens[hashlib.sha256(prompt.context.encode()).digest()] = document.tokens
        self.prompts += 1
        self.answers += len(prompt.responses)
        for dimension in dimensions:
            plan = dimension.plan(prompt, Unsearched(document, self.indexer.top_k))
            with contextlib.suppress(StopIteration):
                requests = next(plan)
                while True:
                    requests = plan.send(
                        [self.stand_in_reply(one.call, one.answers, prompt) for one in requests]
                    )

    def stand_in_reply(self, call: Call, answers: tuple[int, ...], prompt: Prompt) -> Reply:
        """A stand-in for the reply to a call; the call is counted when it is the first of its kind."""
        items = [f"key point {number}" for number in range(1, KEY_POINTS + 1)]
        if "statement" in json.dumps(call.json_schema) and len(answers) == 1:
            answer = prompt.responses[answers[0]].text
            items = [answer[start:end].strip() for start, end in sentence_spans(answer)]
        text = json.dumps(stand_in(call.json_schema or {}, items), ensure_ascii=False)
        if (key := call.key("")) not in self._keys:
            self._keys.add(key)
            written = len(self.indexer.tokenizer.offsets(text)) + WORDS_TOKENS * text.count("stand-in")
            self.calls[call.template] += 1
            self.input_tokens[call.template] += estimated_tokens(call, self.indexer.tokenizer)
            self.output_tokens[call.template] += min(written, call.sampling.max_tokens)
            self.examples.setdefault(call.template, call)
        return Reply(text=text, structured=True)


class Unsearched:
    """A document whose first segments stand in for those a search would find: nothing is embedded."""

    def __init__(self, document: IndexedDocument, top_k: int) -> None:
        self.text, self.chunks = document.text, document.chunks
        self._first = list(document.segments[:top_k])

    def search(self, statements: Sequence[str]) -> list[list[Span]]:
        """The same segments for every statement."""
        return [self._first for _ in statements]


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
    counted = (forecast.calls, forecast.input_tokens, forecast.output_tokens)
    total, tokens_in, tokens_out = (sum(one.values()) for one in counted)
    lines.append(f"{'all':<32}{total:>10,}{tokens_in:>16,}{tokens_out:>16,}")
    lines.append(f"for {forecast.answers:,} answers to {forecast.prompts:,} prompts; nothing was asked")
    cost = prices.cost(CallUsage(input_tokens=tokens_in, output_tokens=tokens_out))
    if cost is None:
        lines.append("give --price-input and --price-output (per million tokens) to see the money")
    else:
        lines.append(f"cost expected: {cost:.4f} (without any discount for cached input)")
    return "\n".join(lines)


def dry_run(
    prompts: Iterable[Prompt], dimensions: Sequence[Dimension], indexer: DocumentIndexer, prices: Prices
) -> int:
    """Print the forecast."""
    print("reading documents, driving plans; no judge is asked", file=sys.stderr)
    forecast = Forecast(indexer)
    for prompt in prompts:
        forecast.add(prompt, dimensions)
    print(render_forecast(forecast, prices))
    return 0


def estimated_tokens(call: Call, tokenizer: FastTokenizer) -> int:
    """Length of a call's messages in tokens of the chunking tokenizer, with what a chat template adds to each."""
    return sum(len(tokenizer.offsets(message.content)) + 4 for message in call.messages)


def check_overflow(
    engine: Engine,
    dimensions: Sequence[Dimension],
    builder: DocumentIndexer,
    prompts: Iterable[Prompt],
    overflow: Overflow,
    progress: Progress,
) -> None:
    """Raise UserError naming how many prompts have calls over the window, and the longest; with `skip`, warn."""
    window = engine.context_window
    if window is None:
        return
    encode = getattr(engine, "encode", None)  # a judge in this process has it

    def count(call: Call) -> int:
        if encode is not None:
            return len(encode(call))
        return estimated_tokens(call, builder.tokenizer)

    def lengths() -> Iterator[tuple[str, int]]:
        for prompt in prompts:
            progress.update()
            needed = (
                (_needed(call, window, count), f"{prompt.id}, {call.template}")
                for dimension in dimensions
                for call in _first_calls(dimension, prompt, builder)
            )
            longest, name = max(needed, default=(0, prompt.id))
            yield name, longest

    over_window(
        lengths(),
        window,
        overflow,
        hint="use a judge with a longer window, smaller --chunk-tokens or --max-tokens, or --overflow skip to "
        "leave those dimensions out",
        may_be_all=True,
        whose="the judge's",
        left_out="those dimensions are left out as context_too_long",
    )


def _first_calls(dimension: Dimension, prompt: Prompt, builder: DocumentIndexer) -> list[Call]:
    plan = dimension.plan(prompt, builder.build(prompt.context))
    try:
        return [request.call for request in next(plan)]
    except StopIteration:
        return []
    finally:
        plan.close()


def _needed(call: Call, window: int, count: Callable[[Call], int]) -> int:
    """Tokens of a call with its answer; calls that fit however their bytes fall are not counted."""
    most = sum(len(message.content.encode()) + 16 for message in call.messages) + call.sampling.max_tokens
    return most if most <= window else count(call) + call.sampling.max_tokens
