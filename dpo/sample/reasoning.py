"""What a reasoning model wrote, apart: the thinking, and the final answer that is judged, scored and compared."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends inside a thinking block, as templates of models that always think let it."""
    return prompt.rstrip().endswith(OPEN)


def split_reasoning(written: str, opened: bool | None) -> tuple[str | None, str]:
    """(thinking, final answer); None for an answer without thinking. A block that never ends leaves no final answer.

    Args:
        written: what the model wrote.
        opened: whether the prompt opened the block; None where that is not known (an endpoint): then an end without a
            beginning says so.
    """
    begins = written.lstrip().startswith(OPEN)
    if not begins and not opened and (opened is False or CLOSE not in written):
        return None, written
    thought, closed, final = written.lstrip().removeprefix(OPEN).partition(CLOSE)
    if opened is None and not begins and OPEN in thought:
        return None, written  # the answer speaks of such a block
    return thought.strip(), final.lstrip() if closed else ""
