"""Whether the calls of a labelling run fit the judge's window, found out before the first is made.

The first calls of each plan hold the longest texts (a chunk of the document, a whole answer): those are held against
the window. A model in this process counts them with its own tokenizer; for an endpoint they are estimated with the
chunking tokenizer. Nothing is ever cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from judge_pipeline.calls.call import Call
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.window import Overflow, over_window
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.call_counts import estimated_tokens


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
