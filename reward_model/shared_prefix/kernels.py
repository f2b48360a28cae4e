"""The attention kernels: variable-length attention that also returns its log-sum-exp, forward and backward.

A kernel computes softmax(QKᵀ·scale)V for several sequences packed end to end and returns, beside the output, the
log-sum-exp of each query's scores. Two pieces of one softmax can then be merged exactly, and because the backward
pass takes the *merged* output and log-sum-exp, each piece yields its exact share of the gradients. That is what
lets all answers attend to one copy of the prefix's keys, in training as well as in inference.

Shapes: q ``(Tq, Hq, D)``, k and v ``(Tk, Hkv, D)``, lse ``(Tq, Hq)`` fp32 (fp64 for fp64). Causal masks are
aligned bottom-right: the last query of a sequence sees its last key.

Three of them: the flash-attn package and torch's own flash attention on CUDA, the one behind SDPA on CPU.
``backends`` chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Varlen:
    """What one call computes: lengths of the sequences packed in q and in k, in the same order, and their mask."""

    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]
    causal: bool
    window: int | None = None
    """Keys a query sees, itself included; None for all."""

    @cached_property
    def _arguments(self) -> dict[torch.device, tuple[Tensor, Tensor, int, int]]:
        return {}

    def arguments(self, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
        """Flash attention's (cu_seqlens_q, cu_seqlens_k, max_q, max_k), int32 on ``device``, made once."""
        if device not in self._arguments:
            cu_q, cu_k = (
                torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
                for lengths in (self.q_lengths, self.k_lengths)
            )
            self._arguments[device] = (cu_q, cu_k, max(self.q_lengths), max(self.k_lengths))
        return self._arguments[device]

    @property
    def window_size(self) -> dict[str, int]:
        """The mask as flash attention takes it: keys left and right of the query, -1 for all."""
        left = -1 if self.window is None else self.window - 1
        return {"window_size_left": left, "window_size_right": 0 if self.causal else -1}

    def spans(self) -> Iterator[tuple[slice, slice]]:
        """Slices of each sequence's queries and keys."""
        q = k = 0
        for q_length, k_length in zip(self.q_lengths, self.k_lengths, strict=True):
            yield slice(q, q + q_length), slice(k, k + k_length)
            q, k = q + q_length, k + k_length


class Kernel(Protocol):
    """Forward and backward of variable-length attention; see the module docstring for shapes."""

    name: str

    def forward(self, q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scale: float) -> tuple[Tensor, Tensor]:
        """Output ``(Tq, Hq, D)`` and log-sum-exp ``(Tq, Hq)``."""
        ...

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        varlen: Varlen,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v through this piece of a softmax whose total is ``(out, lse)``."""
        ...


class TorchVarlenKernel:
    """Flash attention as built into torch (``torch.nn.attention.varlen``), fp16 and bf16 on CUDA."""

    name = "torch_varlen"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scale: float) -> tuple[Tensor, Tensor]:
        """See ``Kernel``."""
        lengths = varlen.arguments(q.device)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, *lengths, 0.0, varlen.causal, return_debug_mask=False, scale=scale, **varlen.window_size
        )
        return out, lse.transpose(0, 1)

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        varlen: Varlen,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernel``."""
        lse = lse.transpose(0, 1).contiguous()
        no_dropout = (torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device))
        lengths = varlen.arguments(q.device)
        return torch.ops.aten._flash_attention_backward(
            grad,
            q,
            k,
            v,
            out,
            lse,
            *lengths,
            0.0,
            varlen.causal,
            *no_dropout,
            scale=scale,
            **varlen.window_size,
        )


class FlashAttnKernel:
    """The flash-attn package (2.8), fp16 and bf16 on CUDA."""

    name = "flash_attn"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scale: float) -> tuple[Tensor, Tensor]:
        """See ``Kernel``."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        out, lse, *_ = _flash_attn_varlen_forward(
            q, k, v, *varlen.arguments(q.device), **self._options(varlen, scale)
        )
        return out, lse.transpose(0, 1)

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        varlen: Varlen,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernel``."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        lse = lse.transpose(0, 1).contiguous()
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        _flash_attn_varlen_backward(
            *(grad, q, k, v, out, lse, dq, dk, dv),
            *varlen.arguments(q.device),
            **self._options(varlen, scale),
            softcap=0.0,
            alibi_slopes=None,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return dq, dk, dv

    @staticmethod
    def _options(varlen: Varlen, scale: float) -> dict[str, Any]:
        return {"dropout_p": 0.0, "softmax_scale": scale, "causal": varlen.causal, **varlen.window_size}


@dataclass(frozen=True)
class _Block:
    """Queries and keys of one call of the CPU kernel, which masks top-left and knows no window."""

    q: slice
    k: slice
    causal: bool  # square blocks only
    band: tuple[int, int | None] | None  # (key position of the first query, window) when a mask is needed


class CpuFlashKernel:
    """The flash attention that SDPA uses on CPU: fp32, fp64, bf16 and fp16, one call a sequence.

    Blocks a window or a bottom-right mask needs carry an explicit mask, at most ``BLOCK`` queries at a time, so
    a long document costs O(T·window) and never a T×T mask.
    """

    name = "cpu_flash"
    BLOCK = 512

    def _blocks(self, varlen: Varlen) -> Iterator[_Block]:
        window = varlen.window
        for q, k in varlen.spans():
            q_length, k_length = q.stop - q.start, k.stop - k.start
            offset = k_length - q_length
            if not varlen.causal:
                yield _Block(q, k, False, None)
            elif offset == 0 and (window is None or window >= k_length):
                yield _Block(q, k, True, None)
            else:
                for start in range(0, q_length, self.BLOCK):
                    stop = min(start + self.BLOCK, q_length)
                    first = 0 if window is None else max(0, start + offset - window + 1)
                    keys = slice(k.start + first, k.start + stop + offset)
                    queries = slice(q.start + start, q.start + stop)
                    yield _Block(queries, keys, False, (start + offset - first, window))

    @staticmethod
    def _mask(block: _Block, like: Tensor) -> Tensor | None:
        if block.band is None:
            return None
        first, window = block.band
        query = torch.arange(block.q.stop - block.q.start)[:, None] + first
        key = torch.arange(block.k.stop - block.k.start)[None, :]
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        mask = torch.zeros(visible.shape, dtype=like.dtype).masked_fill_(~visible, float("-inf"))
        return mask[None, None]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scale: float) -> tuple[Tensor, Tensor]:
        """See ``Kernel``."""
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
        for block in self._blocks(varlen):
            piece, piece_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_heads_first(q[block.q], k[block.k], v[block.k]),
                0.0,
                block.causal,
                attn_mask=self._mask(block, q),
                scale=scale,
            )
            out[block.q] = piece[0].transpose(0, 1)
            lse[block.q] = piece_lse[0].transpose(0, 1)
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        varlen: Varlen,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernel``."""
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in self._blocks(varlen):
            dq_block, dk_block, dv_block = (
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    *_heads_first(
                        grad[block.q], q[block.q], k[block.k], v[block.k], out[block.q], lse[block.q]
                    ),
                    0.0,
                    block.causal,
                    attn_mask=self._mask(block, q),
                    scale=scale,
                )
            )
            dq[block.q] = dq_block[0].transpose(0, 1)
            dk[block.k] += dk_block[0].transpose(0, 1)
            dv[block.k] += dv_block[0].transpose(0, 1)
        return dq, dk, dv


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    """``(T, H, …)`` → ``(1, H, T, …)``."""
    return [x.transpose(0, 1).unsqueeze(0) for x in tensors]
