"""Turning the machine's refusals into advice: out of memory names the settings that help, in order of effect.

Also here: keeping a log file free of other libraries' progress bars.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

import torch

from judge_pipeline.errors import UserError

TRAINING_KNOBS = (
    "a smaller --token-budget (the longest prompt with its answers is its lower bound)",
    "--gradient-checkpointing",
    "--method lora, or qlora for a 4-bit base model",
    "--method full --freeze-layers K, which trains the upper layers only",
    "--precision bf16",
    "more devices: accelerate launch with a configuration of scripts/accelerate",
)
SCORING_KNOBS = (
    "a smaller --token-budget: prompts longer than it are read in chunks of that many tokens",
    "--dtype bfloat16",
    "--engine vllm, which pages its cache",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


@contextlib.contextmanager
def explain_out_of_memory(doing: str, knobs: Sequence[str]) -> Iterator[None]:
    """Raise a UserError with the knobs to turn in place of an out-of-memory error."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no memory left"
        raise UserError(
            f"out of memory while {doing} ({first})", "turn one of these:\n    - " + "\n    - ".join(knobs)
        ) from error


def quiet_loading() -> None:
    """Turn off transformers' bars for loading and saving where nobody watches them."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
