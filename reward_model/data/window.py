"""Prompts longer than the model's window: an error that says how many and which is longest, or left out. Never cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from judge_pipeline.common.errors import UserError

Overflow = Literal["error", "skip"]
LEAVE_OUT = "leave them out with --overflow skip; documents are never cut"


def over_window(
    lengths: Iterable[tuple[str, int]],
    window: int,
    overflow: Overflow,
    kind: str = "prompts",
    hint: str = LEAVE_OUT,
    may_be_all: bool = False,
) -> set[int]:
    """Positions of the prompts over the window.

    Args:
        lengths: (prompt id, tokens with its longest answer) of every prompt; may be a stream.
        window: tokens the model can read.
        overflow: whether any prompt over the window is an error.
        kind: what the prompts are called in messages.
        hint: what to do about the error.
        may_be_all: whether it is right that no prompt is left.

    Raises:
        UserError: some do not fit and `overflow` is "error", or none fits.
    """
    over: set[int] = set()
    count, longest, name = 0, 0, ""
    for index, (prompt_id, length) in enumerate(lengths):
        count += 1
        if length > window:
            over.add(index)
            if length > longest:
                longest, name = length, prompt_id
    if over and (overflow == "error" or (len(over) == count and not may_be_all)):
        raise UserError(
            f"{len(over)} of {count} {kind} are longer than the model's window of {window} tokens; the longest is "
            f"'{name}' with {longest}",
            hint if overflow == "error" else "",
        )
    return over
