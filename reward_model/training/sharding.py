"""Whether a process of a training run holds whole weights, and steps them itself; and what follows for shared prefixes."""

from __future__ import annotations

import os

from torch import nn

from reward_model.shared_prefix.exactness import check_supported, prepare_shared_prefix
from reward_model.shared_prefix.interface import enable_shared_prefix


def weights_are_sharded() -> bool:
    """Whether this process holds only a part of the weights (ZeRO-3, or FSDP loading on one process)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return bool(is_deepspeed_zero3_enabled()) or fsdp


def optimiser_is_ours() -> bool:
    """Whether each process has the whole optimiser in torch: not with FSDP, nor with DeepSpeed of any stage."""
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return not deepspeed and not weights_are_sharded()


def share_prefix(model: nn.Module) -> None:
    """Switch to shared-prefix attention, proving it exact where the whole model is at hand."""
    if weights_are_sharded():
        check_supported(model)
        enable_shared_prefix(model)
    else:
        prepare_shared_prefix(model)
