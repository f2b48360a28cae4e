"""Records longer than a model's window: an error that says how many and which is longest, or left out. Never cut."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

from judge_pipeline.common.errors import UserError

log = logging.getLogger(__name__)
Overflow = Literal["error", "skip"]
LEAVE_OUT = "leave them out with --overflow skip; documents are never cut"


def over_window(
    lengths: Iterable[tuple[str, int]],
    window: int,
    overflow: Overflow,
    kind: str = "prompts",
    hint: str = LEAVE_OUT,
    may_be_all: bool = False,
    whose: str = "the model's",
    left_out: str | None = None,
) -> set[int]:
    """Positions of the records over the window.

    Args:
        lengths: (what to call it, tokens with its longest answer) of every record; may be a stream.
        window: tokens the model can read.
        overflow: whether any record over the window is an error.
        kind: what the records are called in messages.
        hint: what to do about the error.
        may_be_all: whether it is right that no record is left.
        whose: whose window it is, in messages.
        left_out: what becomes of records over the window, for a warning; without it there is none.

    Raises:
        UserError: some do not fit and `overflow` is "error", or none fits.
    """
    over: set[int] = set()
    count, longest, name = 0, 0, ""
    for index, (record, length) in enumerate(lengths):
        count += 1
        if length > window:
            over.add(index)
            if length > longest:
                longest, name = length, record
    message = (
        f"{len(over)} of {count} {kind} are longer than {whose} window of {window} tokens; the longest is "
        f"'{name}' with {longest}"
    )
    if over and (overflow == "error" or (len(over) == count and not may_be_all)):
        raise UserError(message, hint if overflow == "error" else "")
    if over and left_out:
        log.warning("%s; %s", message, left_out)
    return over
