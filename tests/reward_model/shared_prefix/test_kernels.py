"""The attention over a plan against one dense mask, and which kernel is trusted with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.backends import choose_kernel
from reward_model.shared_prefix.kernels import CpuFlashKernel, TorchVarlenKernel, Varlen
from reward_model.shared_prefix.layout import Layout, PromptShape
from reward_model.shared_prefix.plan import AttentionPlan, attend
from reward_model.training.guards import show_log


def dense_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, scale: float
) -> Any:
    """Softmax over the keys each query may see, one dense mask."""
    hidden = torch.ones(plan.q_length, plan.k_length, dtype=torch.bool)
    for row in plan.rows:
        keys = [*range(*row.context), *range(*row.own)]
        for i in range(row.length):
            seen = keys[: row.context_length + i + 1]
            hidden[row.query[0] + i, seen[-plan.window :] if plan.window else seen] = False
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


PLANS = {
    "packed": AttentionPlan.of_layout(
        Layout((PromptShape(600, (7, 31)), PromptShape(3, (2,)), PromptShape(40, (1, 9))))
    ),
    "chunk": AttentionPlan.of_chunk(500, 1100, [1200]),
    "answers": AttentionPlan.of_answers(530, [17, 3, 40]),
}


@pytest.mark.parametrize("window", [None, 1, 2, 33, 570])
@pytest.mark.parametrize("plan_name", PLANS)
@pytest.mark.parametrize("kernel_name", ["cpu_flash", "sdpa"])
def test_attend_equals_a_dense_mask_in_fp64(kernel_name: str, plan_name: str, window: int | None) -> None:
    plan = PLANS[plan_name].with_window(window)
    generator = torch.Generator().manual_seed(5)
    q, k, v, grad = (
        torch.randn(length, heads, 16, dtype=torch.float64, generator=generator)
        for length, heads in ((plan.q_length, 4), (plan.k_length, 2), (plan.k_length, 2), (plan.q_length, 4))
    )
    kernel = None if kernel_name == "sdpa" else CpuFlashKernel()
    outputs = []
    for function in (lambda *x: attend(*x, plan, kernel, 0.4), lambda *x: dense_reference(*x, plan, 0.4)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = function(*leaves)
        out.backward(grad)
        outputs.append([out, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@given(
    st.lists(
        st.builds(
            PromptShape, st.integers(1, 30), st.lists(st.integers(1, 9), min_size=1, max_size=8).map(tuple)
        ),
        min_size=1,
        max_size=3,
    ),
    st.one_of(st.none(), st.integers(1, 45)),
)
@settings(max_examples=60, deadline=None)
def test_any_layout_and_window_equals_a_dense_mask(prompts: list[PromptShape], window: int | None) -> None:
    plan = AttentionPlan.of_layout(Layout(tuple(prompts))).with_window(window)
    generator = torch.Generator().manual_seed(plan.q_length)
    q = torch.randn(plan.q_length, 4, 8, dtype=torch.float64, generator=generator)
    k, v = (torch.randn(plan.k_length, 2, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    expected = dense_reference(q, k, v, plan, 0.35)
    for kernel in (CpuFlashKernel(), None):
        torch.testing.assert_close(attend(q, k, v, plan, kernel, 0.35), expected, atol=1e-10, rtol=1e-10)


def test_values_narrower_or_wider_than_keys() -> None:
    plan = AttentionPlan.of_layout(Layout.of(9, [4, 2]))
    for width in (8, 24):
        q, k = torch.randn(15, 2, 16), torch.randn(15, 2, 16)
        v = torch.randn(15, 2, width)
        torch.testing.assert_close(
            attend(q, k, v, plan, CpuFlashKernel(), 0.25),
            dense_reference(q, k, v, plan, 0.25),
            atol=1e-5,
            rtol=1e-4,
        )


def test_the_prefix_keys_are_not_copied_per_answer() -> None:
    """The pieces of a plan hold each key once for context and once for its own row, whatever N."""
    plan = AttentionPlan.of_layout(Layout.of(1000, [5] * 64))
    assert plan.own.varlen.k_lengths == (1000, *[5] * 64)
    assert plan.context is not None
    assert plan.context.varlen == Varlen((320,), (1000,), causal=False)
    assert plan.context.keys.run == (0, 1000)  # a view


def test_kernel_choice_is_by_device_and_can_be_forced() -> None:
    chosen = choose_kernel(torch.device("cpu"), torch.float32)
    assert chosen is not None
    assert chosen.name == "cpu_flash"
    assert choose_kernel(torch.device("cpu"), torch.float32, "sdpa") is None
    with pytest.raises(UserError, match="no attention back end 'flash'"):
        choose_kernel(torch.device("cpu"), torch.float32, "flash")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [8, 12, 80, 256, 512])
def test_the_cpu_kernel_passes_its_check_at_every_width(dtype: torch.dtype, head_dim: int) -> None:
    assert choose_kernel(torch.device("cpu"), dtype, head_dim=head_dim) is not None


@pytest.mark.parametrize("window", [None, 5])
def test_cuda_kernel_calls_match_torchs_operators(window: int | None) -> None:
    """Without a GPU the operators' own shape functions run: arguments parse, log-sum-exp comes token-major."""
    kernel = TorchVarlenKernel()
    varlen = Varlen((3, 9), (7, 9), causal=True, window=window)
    q, grad = (torch.empty(12, 4, 64, device="meta", dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.empty(16, 2, 64, device="meta", dtype=torch.bfloat16) for _ in range(2))
    out, lse = kernel.forward(q, k, v, varlen, 0.125)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (12, 4), torch.float32)
    grads = kernel.backward(grad, q, k, v, out, lse, varlen, 0.125)
    assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]
    assert not any(g.is_cpu for g in grads)


def test_a_kernel_that_is_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An off log-sum-exp would merge pieces wrongly; the check at the choice catches it."""
    honest = CpuFlashKernel.forward

    def off(self: CpuFlashKernel, *args: Any) -> Any:
        out, lse = honest(self, *args)
        return out, lse + 0.1 * torch.arange(lse.shape[0])[:, None]

    monkeypatch.setattr(CpuFlashKernel, "forward", off)
    choose_kernel.cache_clear()
    try:
        assert choose_kernel(torch.device("cpu"), torch.float64, "cpu_flash") is None
        assert "not used" in caplog.text
    finally:
        choose_kernel.cache_clear()


def test_a_kernel_may_be_proven_inside_a_checkpointed_layer():
    """The first layer of the first forward pass proves the kernel; under checkpointing its tensors are counted."""
    plan = AttentionPlan.of_layout(Layout.of(5, [3, 4]))
    q, k, v = (torch.randn(plan.q_length, 2, 8, requires_grad=True) for _ in range(3))

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, plan, choose_kernel(q.device, q.dtype, head_dim=8), 0.3).sin()

    wanted = torch.autograd.grad(layer(q, k, v).sum(), (q, k, v))
    choose_kernel.cache_clear()
    found = torch.autograd.grad(checkpoint(layer, q, k, v, use_reentrant=False).sum(), (q, k, v))
    torch.testing.assert_close(found, wanted)


def test_the_choice_is_named_on_the_terminal_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    show_log()
    choose_kernel.cache_clear()
    for _ in range(2):
        choose_kernel(torch.device("cpu"), torch.float32, head_dim=24)
    assert capsys.readouterr().err == "shared-prefix attention: cpu_flash on cpu (torch.float32)\n"  # once
