"""Whether the calls of a labelling run fit the judge's window, found out before the first is made.

The first calls of each plan (on a chunk of the document, on a whole answer) are known to the letter. Those that follow
on what the first extract, verdicts and the coverage of key points, are made with stand-ins: the sentences of the
answer, and as many sentences of a chunk as `POINTS`. A model in this process counts all with its own tokenizer; for an
endpoint they are estimated with the chunking tokenizer. Nothing is ever cut.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.window import Overflow, over_window
from judge_pipeline.dimensions.base import Dimension, Request
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.documents.words import sentences
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.call_counts import estimated_tokens
from judge_pipeline.labelling.forecast import Unsearched, key_points

POINTS = 10
"""Key points assumed in a chunk: what most judges stay below, for the call that weighs them has to fit."""


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
                for call in _planned_calls(dimension, prompt, builder)
            )
            longest, name = max(needed, default=(0, prompt.id))
            yield name, longest

    over_window(
        lengths(),
        window,
        overflow,
        hint="use a judge with a longer window, smaller --chunk-tokens, --key-points-per-call or --max-tokens, or "
        "--overflow skip to leave those dimensions out",
        may_be_all=True,
        whose="the judge's",
        left_out="those dimensions are left out as context_too_long",
    )


def _planned_calls(dimension: Dimension, prompt: Prompt, builder: DocumentIndexer) -> Iterator[Call]:
    """All calls of a plan, those behind an extraction with stand-ins for what it finds."""
    plan = dimension.plan(prompt, Unsearched(builder.build(prompt.context), builder.top_k))
    with contextlib.closing(plan), contextlib.suppress(StopIteration):
        requests = next(plan)
        while True:
            yield from (request.call for request in requests)
            requests = plan.send([_stand_in(request, prompt) for request in requests])


def _stand_in(request: Request, prompt: Prompt) -> Reply:
    """Lists of what a call on a text may extract; other calls decide nothing about those that follow."""
    if not request.call.template.endswith(".extract"):
        return Reply(failure="stopped")
    found = {
        "statements": sentences(prompt.responses[request.answers[0]].text),
        "key_points": key_points(request.call.messages[-1].content, POINTS),
    }
    return Reply(text=json.dumps(found))


def _needed(call: Call, window: int, count: Callable[[Call], int]) -> int:
    """Tokens of a call with its answer; calls that fit however their bytes fall are not counted."""
    most = sum(len(message.content.encode()) + 16 for message in call.messages) + call.sampling.max_tokens
    return most if most <= window else count(call) + call.sampling.max_tokens
