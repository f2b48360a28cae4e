"""Turning the machine's refusals into advice: out of memory names the settings that help, in order of effect.

Also here: what goes to the terminal, which is our own log and lines of the first process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from judge_pipeline.common.errors import UserError

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
    import torch  # not at the start: what shows `--help` must not load it

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


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def show_log() -> None:
    """Print what our log says, the attention back end above all, on stderr; the first process speaks for all."""
    log = logging.getLogger("reward_model")
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    # bitsandbytes warns at import, 4-bit or not, that a faster CPU kernel could be downloaded from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def say(*parts: object) -> None:
    """A line for the user on stderr, from the first process of a run only."""
    if os.environ.get("RANK", "0") == "0":
        print(*parts, file=sys.stderr, flush=True)
