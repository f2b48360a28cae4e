"""Whether a process of a training run holds whole weights, and steps them itself."""

from __future__ import annotations

import os


def weights_are_sharded() -> bool:
    """Whether this process holds only a part of the weights (ZeRO-3, or FSDP loading on one process)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return bool(is_deepspeed_zero3_enabled()) or fsdp


def optimiser_is_ours() -> bool:
    """Whether each process has the whole optimiser in torch: not with FSDP, nor with DeepSpeed of any stage."""
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return not deepspeed and not weights_are_sharded()
