"""Do the calls fit the judge's window? Found out before the first one is paid for; nothing is ever cut.

The first calls of each plan hold the longest texts (a chunk of the document, a whole answer). A model in this
process counts them with its own tokenizer; for an endpoint they are estimated with the chunking tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from judge_pipeline.calls.call import Call
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.local import LocalEngine

log = logging.getLogger(__name__)


class _Counts(Protocol):
    def __call__(self, call: Call) -> int: ...


@runtime_checkable
class Encodes(Protocol):
    """A judge in this process: it can count."""

    def encode(self, call: Call) -> list[int]:
        """The prompt's tokens."""
        ...


def call_tokens(engine: Engine, builder: DocumentIndexer) -> _Counts:
    """A function that counts a call's input tokens, exactly where the engine lets us."""
    encoder = engine.judge if isinstance(engine, LocalEngine) else engine
    if isinstance(encoder, Encodes):
        encode = encoder.encode
        return lambda call: len(encode(call))
    return lambda call: sum(len(builder.tokenizer.offsets(message.content)) + 4 for message in call.messages)


def check_overflow(
    engine: Engine,
    dimensions: Sequence[Dimension],
    builder: DocumentIndexer,
    prompts: Iterable[Prompt],
    *,
    skip: bool,
    progress: Progress,
) -> None:
    """Raise UserError naming how many prompts have calls over the window, and the longest; with `skip`, warn."""
    window = engine.context_window
    if window is None:
        return
    count = call_tokens(engine, builder)
    over: list[tuple[int, str, str]] = []
    total = 0
    for prompt in prompts:
        total += 1
        progress.update()
        longest = max(
            (
                (_needed(call, window, count), prompt.id, call.template)
                for dimension in dimensions
                for call in _first_calls(dimension, prompt, builder)
            ),
            default=(0, prompt.id, ""),
        )
        if longest[0] > window:
            over.append(longest)
    if not over:
        return
    tokens, prompt_id, template = max(over)
    message = (
        f"{len(over)} of {total} prompts have calls that do not fit the judge's window of {window} tokens; the "
        f"longest needs {tokens} with its answer (prompt '{prompt_id}', {template})"
    )
    if skip:
        log.warning("%s; those dimensions are left out as context_too_long", message)
        return
    raise UserError(
        message,
        "use a judge with a longer window, smaller --chunk-tokens or --max-tokens, or --overflow skip to leave "
        "those dimensions out",
    )


def _first_calls(dimension: Dimension, prompt: Prompt, builder: DocumentIndexer) -> list[Call]:
    plan = dimension.plan(prompt, builder.build(prompt.context))
    try:
        return [request.call for request in next(plan)]
    except StopIteration:
        return []
    finally:
        plan.close()


def _needed(call: Call, window: int, count: _Counts) -> int:
    """Tokens of a call with its answer; calls that fit however their bytes fall are not counted."""
    most = sum(len(message.content.encode()) + 16 for message in call.messages) + call.sampling.max_tokens
    return most if most <= window else count(call) + call.sampling.max_tokens
