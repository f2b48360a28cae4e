"""What a label costs in calls, tokens and embedding requests, beside the formula of the reference implementation.

A planning benchmark: real documents (Python's own reference), the real templates, the real chunking and retrieval,
tokens counted by a real tokenizer with its chat template, and simulated replies of realistic length. No model
answers. Ten answers of ten statements each; "15% shared" means that so many statements stand in an earlier answer
too. The reference makes C + N(4 + S) calls and embeds the whole document again for every answer; its 148 calls
and 365,000 input tokens at 32k tokens are the published figures.

    python scripts/bench/judge_plan.py [--output scripts/bench/judge_plan.json]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.chunking import FastTokenizer
from judge_pipeline.documents.indexed import DocumentIndexer, IndexedDocument
from judge_pipeline.documents.retrieval import SentenceEmbedder

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.evidence_common import command_line, environment, write_result

ANSWERS, STATEMENTS = 10, 10
SIZES = {"8k": 8192, "32k": 32768, "64k": 65536}
SHARED = (0.0, 0.15)
MODES: dict[str, JudgeOptions] = {
    "paper (K=1)": JudgeOptions(),
    "K=6": JudgeOptions(statements_per_call=6),
    "K=6, joint ratings": JudgeOptions(statements_per_call=6, joint_ratings=True),
}
REFERENCE_AT_32K = {"calls": 148, "input_tokens": 365_000}
REFERENCE_CHUNKS_AT_32K = 8
REFERENCE_NOTE_TOKENS = 1024
"""The longest note on a chunk that the reference lets its judge write; each stands in the coverage prompt of an answer."""
REFERENCE_QUESTION_TOKENS = 120
"""As much as its prompt for such a note has beside the chunk: 365 characters and the question."""
GOAL_AT_32K = {"calls": 58, "input_tokens": 208_000}
KEY_POINTS_A_CHUNK = 6
CACHE_BLOCK = 16
"""Tokens in a block of the simulated prefix cache (vLLM's default)."""


@dataclass
class Case:
    """A document, its prompt, and what a judge would extract from it."""

    prompt: Prompt
    statements: dict[str, list[str]]
    """Answer text → its statements."""


def sentences(text: str) -> list[str]:
    """Sentences of 60 to 220 characters, on one line."""
    found = [" ".join(one.split()) for one in re.split(r"(?<=[.!?])\s+", text)]
    return [one for one in dict.fromkeys(found) if 60 <= len(one) <= 220]


def document(tokens: int, tokenizer: FastTokenizer) -> str:
    """Topics of Python's reference, in alphabetical order, cut to so many tokens."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    offsets = tokenizer.offsets(text)
    return text[: offsets[tokens][0]]


def make_case(text: str, shared: float) -> Case:
    """Ten answers of ten sentences of the document; a share of them repeated from earlier answers."""
    rng = random.Random(0)
    pool = sentences(text)
    rng.shuffle(pool)
    fresh = iter(pool)
    repeated = round(shared * ANSWERS * STATEMENTS)
    lists = [[next(fresh) for _ in range(STATEMENTS)] for _ in range(ANSWERS)]
    slots = [(answer, place) for answer in range(1, ANSWERS) for place in range(STATEMENTS)]
    for answer, place in sorted(rng.sample(slots, repeated)):
        earlier = [one for one in lists[rng.randrange(answer)] if one not in lists[answer]]
        lists[answer][place] = rng.choice(earlier)
    texts = ["According to the document:\n" + "\n".join(f"- {one}" for one in rows) for rows in lists]
    responses = [{"id": str(number), "text": one} for number, one in enumerate(texts)]
    query = "Which rules does the reference state on evaluation, naming and attribute access, and where do they differ?"
    prompt = Prompt.model_validate({"id": "p", "context": text, "query": query, "responses": responses})
    return Case(prompt, dict(zip(texts, lists, strict=True)))


class SimulatedJudge:
    """Well-formed replies of realistic length, by template."""

    ANALYSIS = "The passages named state this in so many words, with the condition that the statement keeps."

    def __init__(self, case: Case) -> None:
        self._case = case

    def reply(self, call: Call) -> Reply:
        """The reply to a call, in the text protocol."""
        kind = call.template.split(".")[1]
        text = call.messages[-1].content
        if kind == "extract":
            if call.template.startswith("completeness"):
                items = sentences(text)[:KEY_POINTS_A_CHUNK]
            else:
                items = next(rows for answer, rows in self._case.statements.items() if answer in text)
            return Reply(text="\n".join(f"- {one}" for one in items) or "NONE")
        if kind == "verify":
            return Reply(text=f"{self.ANALYSIS}\n[[Fully supported]]")
        if kind == "verify_many":
            numbers = re.findall(r"^S(\d+): ", text, re.MULTILINE)
            return Reply(text="\n".join(f"S{n}: {self.ANALYSIS} [[Fully supported]]" for n in numbers))
        rating = f"{self.ANALYSIS * 3}\nRating: [[7]]"
        if call.template == "joint.rate":
            return Reply(text="\n\n".join(f"## {name}\n{rating}" for name in ("helpfulness", "logicality")))
        return Reply(text=rating)


def drive(case: Case, document: IndexedDocument, options: JudgeOptions) -> list[tuple[Call, Reply]]:
    """All distinct calls of the four dimensions, with their replies."""
    judge = SimulatedJudge(case)
    made: dict[str, tuple[Call, Reply]] = {}
    for dimension in build_dimensions(["paper"], options):
        plan = dimension.plan(case.prompt, document)
        try:
            requests = next(plan)
            while True:
                for request in requests:
                    made.setdefault(request.call.key("simulated"), (request.call, judge.reply(request.call)))
                requests = plan.send([made[request.call.key("simulated")][1] for request in requests])
        except StopIteration as stop:
            lost = [outcome.reason for outcome in stop.value if outcome.score is None]
            if lost:
                raise RuntimeError(f"{dimension.name}: {lost}") from stop
    return list(made.values())


def count(
    calls: list[tuple[Call, Reply]], tokenizer: Any
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """(tokens of all calls, calls and tokens by template); cacheable: in an unbounded prefix cache, in issue order."""
    total: Counter[str] = Counter()
    by_template: dict[str, Counter[str]] = defaultdict(Counter)
    seen: set[bytes] = set()
    for call, reply in sorted(calls, key=lambda pair: pair[0].template):
        messages = [message.model_dump() for message in call.messages]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        cost = {"calls": 1, "input_tokens": len(ids)}
        by_template[call.template].update(cost)
        output = len(tokenizer(reply.text).input_ids)
        total.update({**cost, "output_tokens": output, "cacheable_input_tokens": _cached(ids, seen)})
    return total, dict(by_template)


def _cached(ids: list[int], seen: set[bytes]) -> int:
    """Tokens of the blocks, from the start, that an earlier call already had; then remembers this call's."""
    digest, hit, counting = hashlib.sha256(), 0, True
    for start in range(0, len(ids) - CACHE_BLOCK + 1, CACHE_BLOCK):
        digest.update(json.dumps(ids[start : start + CACHE_BLOCK]).encode())
        key = digest.digest()
        counting = counting and key in seen
        hit += CACHE_BLOCK * counting
        seen.add(key)
    return hit


class RememberingEmbedder:
    """The real vectors, counted as if each were made anew: the rows of the table embed the same documents."""

    def __init__(self) -> None:
        self.requests = self.texts = 0
        self._model = SentenceEmbedder("minilm")
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, shape (len(texts), dimension)."""
        self.requests += 1
        self.texts += len(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._model.embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def reference_tokens(chunks: int) -> int:
    """The least input tokens the reference can take for a document of so many chunks, from the figure at 32k."""
    more = chunks - REFERENCE_CHUNKS_AT_32K
    chunk = 4096
    if more < 0:  # what may fall away at most
        chunk += REFERENCE_QUESTION_TOKENS + ANSWERS * REFERENCE_NOTE_TOKENS
    return REFERENCE_AT_32K["input_tokens"] + more * chunk


def measure(
    size: str, shared: float, mode: str, embedder: RememberingEmbedder, tokenizer: Any
) -> dict[str, Any]:
    """One row of the table."""
    builder = DocumentIndexer(embedder=embedder)
    text = document(SIZES[size], FastTokenizer("minilm"))
    case = make_case(text, shared)
    indexed = builder.build(text)
    before = (embedder.requests, embedder.texts)
    started = time.perf_counter()
    calls = drive(case, indexed, MODES[mode])
    seconds = time.perf_counter() - started
    counted, by_template = count(calls, tokenizer)
    chunks, segments = len(indexed.chunks), len(indexed.segments)
    statements = {one for rows in case.statements.values() for one in rows}
    verification = math.ceil(len(statements) / MODES[mode].statements_per_call)
    bound = chunks + 3 * ANSWERS + verification + ANSWERS
    if counted["calls"] > bound:
        raise RuntimeError(f"{counted['calls']} calls, more than C + 3N + verification + N = {bound}")
    if counted["input_tokens"] > reference_tokens(chunks):
        raise RuntimeError(f"{counted['input_tokens']} tokens, more than {reference_tokens(chunks)}")
    return {
        "document": size,
        "shared_statements": shared,
        "mode": mode,
        "chunks": chunks,
        "distinct_statements": len(statements),
        **counted,
        "reference_calls": chunks + ANSWERS * (4 + STATEMENTS),
        "reference_input_tokens_at_least": reference_tokens(chunks),
        "embedding_requests": embedder.requests - before[0],
        "embedded_texts": embedder.texts - before[1],
        "reference_embedded_texts": ANSWERS * (segments + STATEMENTS),
        "planning_seconds": round(seconds, 2),
        "by_template": by_template,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and how 32k compares with the reference and the goal."""
    print(
        f"{'document':>8} {'shared':>6}  {'mode':<20}{'calls':>6}{'reference':>10}{'input':>9}{'cacheable':>10}{'embedded':>9}{'reference':>10}"
    )
    for row in rows:
        print(
            f"{row['document']:>8} {row['shared_statements']:>6.0%}  {row['mode']:<20}{row['calls']:>6}"
            f"{row['reference_calls']:>10}{row['input_tokens']:>9,}"
            f"{row['cacheable_input_tokens'] / row['input_tokens']:>10.0%}{row['embedded_texts']:>9,}"
            f"{row['reference_embedded_texts']:>10,}"
        )
    for row in rows:
        if row["document"] == "32k" and row["mode"] != "paper (K=1)":
            calls = "met" if row["calls"] <= GOAL_AT_32K["calls"] else "not met"
            tokens = "met" if row["input_tokens"] <= GOAL_AT_32K["input_tokens"] else "not met"
            plan = f"{row['mode']}, {row['shared_statements']:.0%} shared"
            print(f"goal at 32k, {plan}: calls {calls}, tokens {tokens}")


def main() -> None:
    """Measure all sizes and modes, write the JSON, print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    embedder = RememberingEmbedder()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2"))
    plans = itertools.product(SIZES, SHARED, MODES)
    rows = [measure(size, shared, mode, embedder, tokenizer) for size, shared, mode in plans]
    report = {
        "what": "planning benchmark: real templates, chunking and retrieval, simulated replies; no model answers",
        "answers": ANSWERS,
        "statements_per_answer": STATEMENTS,
        "tokens": "SmolLM2-135M-Instruct tokenizer with its chat template; document sizes by all-MiniLM-L6-v2",
        "peer": {"formula": "C + N(4 + S) calls", "at_32k": REFERENCE_AT_32K},
        "goal_at_32k_with_k_6": GOAL_AT_32K,
        **environment(),
        "rows": rows,
    }
    show(rows)
    write_result(arguments.output, report)


if __name__ == "__main__":
    main()
