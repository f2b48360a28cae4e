"""Which attention kernel runs here, and the proof that it computes what it should.

In order of preference: ``flash_attn`` (CUDA, when installed), ``torch_varlen`` (CUDA, flash attention inside
torch), ``cpu_flash`` (CPU). Everything else (CUDA in fp32, other devices) takes the SDPA path of
``plan``. A kernel is compared with plain mathematics once, forward and backward, before it is trusted.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.kernels import (
    CpuFlashKernel,
    FlashAttnKernel,
    Kernel,
    TorchVarlenKernel,
    Varlen,
)

logger = logging.getLogger(__name__)

Tensor = torch.Tensor


@contextmanager
def _apart() -> Iterator[None]:
    """Keep the proof's own autograd out of the caller's: it runs inside the first layer of a forward pass.

    That layer may be checkpointed, and a checkpoint counts every tensor that is saved while it is open.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved),
    ):
        yield


def _trusted(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Compare a kernel with plain mathematics, forward and backward, as two pieces of one softmax."""
    with _apart():
        return _agrees(kernel, device, dtype, head_dim)


def _agrees(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    q, k, v, grad = draw(9, 4, head_dim), draw(15, 2, head_dim), draw(15, 2, head_dim), draw(9, 4, head_dim)
    scale = head_dim**-0.5
    left, right = slice(0, 6), slice(6, 15)
    context, own = Varlen((9,), (6,), causal=False), Varlen((9,), (9,), causal=True)
    try:
        out, lse = kernel.forward(q, k[right], v[right], own, scale)
        out_c, lse_c = kernel.forward(q, k[left], v[left], context, scale)
        total = torch.logaddexp(lse, lse_c)
        merged = (out * (lse - total).exp()[..., None] + out_c * (lse_c - total).exp()[..., None]).to(dtype)
        own_grads = kernel.backward(grad, q, k[right], v[right], merged, total, own, scale)
        context_grads = kernel.backward(grad, q, k[left], v[left], merged, total, context, scale)
    except (RuntimeError, TypeError, ValueError, ImportError, AttributeError) as error:
        logger.warning("attention kernel %s does not run on %s %s: %s", kernel.name, device, dtype, error)
        return False
    grads = [own_grads[0] + context_grads[0]]
    grads += [torch.cat([context_grads[i], own_grads[i]]) for i in (1, 2)]
    x = [t.double().requires_grad_() for t in (q, k, v)]
    key, value = (t.repeat_interleave(2, dim=1) for t in x[1:])
    scores = torch.einsum("qhd,khd->hqk", x[0], key) * scale
    hidden = torch.ones(9, 15, dtype=torch.bool, device=device).triu(7)
    reference = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)
    reference.backward(grad.double())
    pairs = [(merged, reference), *((g, t.grad) for g, t in zip(grads, x, strict=True))]
    worst = max(
        float((a.double() - b.detach()).abs().max() / b.detach().abs().max())
        for a, b in pairs
        if b is not None
    )
    tolerance = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-5
    if not worst < tolerance:
        logger.warning(
            "attention kernel %s is off by %.1e on %s %s: not used", kernel.name, worst, device, dtype
        )
        return False
    return True


KERNELS: dict[str, type[FlashAttnKernel] | type[TorchVarlenKernel] | type[CpuFlashKernel]] = {
    "flash_attn": FlashAttnKernel,
    "torch_varlen": TorchVarlenKernel,
    "cpu_flash": CpuFlashKernel,
}


@cache
def choose_kernel(
    device: torch.device, dtype: torch.dtype, forced: str | None = None, head_dim: int = 64
) -> Kernel | None:
    """The best kernel that works here, or None for plain SDPA; the choice is logged once.

    Args:
        device: where q, k and v live.
        dtype: their type; flash attention on CUDA takes fp16 and bf16 only.
        forced: one of ``KERNELS``, or ``"sdpa"`` for the plain path.
        head_dim: width of a head; the check runs at it, since kernels differ in what they take.

    Raises:
        UserError: ``forced`` names no kernel.
    """
    if forced not in (None, "sdpa", *KERNELS):
        raise UserError(f"no attention back end '{forced}'", hint=f"choose one of sdpa, {', '.join(KERNELS)}")
    candidates: list[Kernel] = []
    if forced == "sdpa":
        pass
    elif forced is not None:
        candidates = [KERNELS[forced]()]
    elif device.type == "cpu":
        candidates = [CpuFlashKernel()]
    elif device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        if importlib.util.find_spec("flash_attn") is not None:
            candidates.append(FlashAttnKernel())
        candidates.append(TorchVarlenKernel())
    for kernel in candidates:
        if _trusted(kernel, device, dtype, head_dim):
            logger.info("shared-prefix attention: %s on %s (%s)", kernel.name, device, dtype)
            return kernel
    logger.info("shared-prefix attention: sdpa on %s (%s)", device, dtype)
    return None
