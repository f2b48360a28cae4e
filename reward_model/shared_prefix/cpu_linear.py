"""Matrix products of frozen fp32 models on CPUs by oneDNN: where MKL leaves AVX-512 unused, twice as fast.

torch multiplies fp32 matrices with MKL, which takes its fast paths on Intel's processors only (here, AMD EPYC, one core:
100 against 224 GFLOP/s at a small model's shapes); oneDNN, which torch carries too, asks the processor. Only readings
without gradients are changed, and only while they run; hidden states differ by rounding, about 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def available() -> bool:
    """Whether this build of torch has oneDNN's linear layer."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def onednn_linears(model: nn.Module) -> Iterator[int]:
    """Linear layers of `model` multiply with oneDNN inside; gives their number.

    Plain ``nn.Linear`` in fp32 on a CPU alone: not quantised or sharded ones, nor such as another hook has changed.
    """
    changed = [module for module in model.modules() if _can(module)] if available() else []
    for module in changed:
        module.forward = MethodType(_linear, module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _can(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module) or isinstance(module.weight, DTensor):
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def _linear(self: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return linear(inputs, self.weight, self.bias)


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What ``torch.nn.functional.linear`` gives, by oneDNN where that is of use; see above."""
    plain = torch.is_grad_enabled() or weight.device.type != "cpu" or not inputs.numel() or not available()
    if plain or {inputs.dtype, weight.dtype} != {torch.float32}:
        return nn.functional.linear(inputs, weight, bias)
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        inputs.contiguous(), weight, bias, "none", [], ""
    )
    return found
