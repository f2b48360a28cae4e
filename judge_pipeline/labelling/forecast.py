"""What a labelling run will ask and cost, found out before the first call (`--dry-run`).

Every plan is driven to its end with stand-in replies made from each call's JSON schema, so that the calls are the ones
a run would make; only what a judge finds is assumed: one statement a sentence of the answer, and as many key points a
chunk as `KEY_POINTS`, as long as the chunk's own sentences. Evidence is the document's first segments instead of the
best, which are as long. What a judge thinks before it replies is not known here: `calibration` measures it, and all
the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Sequence

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.documents.chunking import Span
from judge_pipeline.documents.indexed import DocumentIndexer, IndexedDocument
from judge_pipeline.documents.words import sentence_spans
from judge_pipeline.engines.call_counts import Amount, Amounts, CallCounts

KEY_POINTS = 5
"""Key points assumed in a chunk of the document."""
ITEM_CHARS = 200
"""Longest stand-in for a key point."""
BAR = 40


class Forecast:
    """Drives plans with stand-in replies, and counts calls and tokens by template."""

    def __init__(self, indexer: DocumentIndexer) -> None:
        self.indexer = indexer
        self.counts = CallCounts(indexer.tokenizer)
        self.document_tokens: dict[bytes, int] = {}
        """Length of each distinct document, by a hash of its text."""
        self.sizes: dict[str, float] = {}
        """Tokens that each prompt adds, by its id."""
        self.answers = 0
        self._added: Amounts = {}

    @property
    def prompts(self) -> int:
        """Prompts seen so far."""
        return len(self.sizes)

    def add(self, prompt: Prompt, dimensions: Sequence[Dimension]) -> Amounts:
        """Count what labelling one prompt asks, and what no prompt before it has; returns that by template."""
        document = self.indexer.build(prompt.context)
        self.document_tokens[hashlib.sha256(prompt.context.encode()).digest()] = document.tokens
        self.answers += len(prompt.responses)
        added: Amounts = {}
        self._added = added
        for dimension in dimensions:
            plan = dimension.plan(prompt, Unsearched(document, self.indexer.top_k))
            with contextlib.suppress(StopIteration):
                requests = next(plan)
                while True:
                    requests = plan.send(
                        [self.stand_in_reply(one.call, one.answers, prompt) for one in requests]
                    )
        self.sizes[prompt.id] = sum(one.input_tokens + one.output_tokens for one in added.values())
        return added

    def stand_in_reply(self, call: Call, answers: tuple[int, ...], prompt: Prompt) -> Reply:
        """A stand-in for the reply to a call; the call is counted when it is the first of its kind."""
        lists = json.dumps(call.json_schema)
        if "statement" in lists and len(answers) == 1:
            answer = prompt.responses[answers[0]].text
            items = [answer[start:end].strip() for start, end in sentence_spans(answer)]
        else:
            items = key_points(call.messages[-1].content) if "key_points" in lists else []
        text, amount = self.counts.foresee(call, items)
        self._added[call.template] = self._added.get(call.template, Amount()) + amount
        return Reply(text=text, structured=True)


def key_points(material: str, count: int = KEY_POINTS) -> list[str]:
    """Sentences of a chunk, evenly spread, in place of its key points: each chunk has others, as long as real ones."""
    spans = sentence_spans(material)
    chosen = [spans[len(spans) * (2 * number + 1) // (2 * count)] for number in range(count)] if spans else []
    return [material[start:end].strip()[:ITEM_CHARS] for start, end in dict.fromkeys(chosen)]


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


def length_lines(forecast: Forecast) -> list[str]:
    """How many documents, and how long."""
    lengths = list(forecast.document_tokens.values())
    return [
        f"documents: {len(lengths)}, tokens (median {statistics.median(lengths):,.0f})",
        *histogram(lengths),
        "",
    ]
