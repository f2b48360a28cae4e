"""Whether a process of a training run holds whole weights."""

from __future__ import annotations

import os


def weights_are_sharded() -> bool:
    """Whether this process holds only a part of the weights (ZeRO-3, or FSDP loading on one process)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return bool(is_deepspeed_zero3_enabled()) or fsdp
