"""Shared-prefix attention behind transformers' attention interface: one reading of a prompt, N answers.

How to use it around any Hugging Face decoder (classification or causal LM)::

    enable_shared_prefix(model)                          # once, after loading
    input_ids, layout = join_ids([(prefix, [answer, …]), …])
    with shared_prefix(layout):                          # any model call, wrapped (DDP, FSDP, PEFT) or not
        out = model(input_ids=input_ids, position_ids=layout.position_ids(), use_cache=False,
                    logits_to_keep=layout.completion_logit_index())         # causal LM: logits (1, C, V)
    hidden_T_H = shared_forward(model, input_ids, layout)                   # the same, hidden states only
    scores_A_D = model(input_ids=input_ids, layout=layout).logits           # a sequence classifier

For DPO the log-probability of completion token ``input_ids[0, layout.completion_target_index()]`` is in the row
of ``logits`` at the same place, and ``layout.completion_answer()`` says which answer it belongs to.

The numbers equal independent forwards of ``[prefix, answer]``. How: the mask function of the interface returns
an ``AttentionPlan`` in place of a mask; the model hands it to every layer as it would a mask, so a recomputation
under gradient checkpointing gets it again after the ``with`` block has ended, in any thread. Outside a
``with shared_prefix`` block the same model runs ordinary SDPA (generation, padded batches, one by one).

Never silently wrong: a model that ignores the interface, positions that are not the layout's, a mask that is not
causal, an attention argument we do not know (soft cap, sinks), attention dropout and RoPE that depends on the
longest sequence of the batch all raise ``UserError``. ``exactness`` holds the checks made at load time.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.backends import choose_kernel
from reward_model.shared_prefix.layout import Layout, TokenIds, join_parts
from reward_model.shared_prefix.plan import AttentionPlan, attend

NAME = "shared_prefix"
ONE_BY_ONE = "score answers one by one instead (--shared-prefix off)"

_active: ContextVar[AttentionPlan | None] = ContextVar("shared_prefix_plan", default=None)

AttentionListener = Callable[[torch.Tensor, torch.Tensor, AttentionPlan, float], None]
"""(queries (Tq, Hq, D), keys (Tk, Hkv, D), plan, scale) of a layer, as they go into its attention."""
_listener: ContextVar[AttentionListener | None] = ContextVar("shared_prefix_listener", default=None)


@contextmanager
def shared_prefix(layout: Layout, backend: str | None = None) -> Iterator[AttentionPlan]:
    """Run model calls inside under ``layout``.

    Args:
        layout: the packed sequence; model inputs are ``(1, T)`` with ``layout.position_ids()``.
        backend: ``flash_attn``, ``torch_varlen``, ``cpu_flash`` or ``sdpa``; None chooses.

    Raises:
        UserError: (on leaving) a layer computed its attention elsewhere.
    """
    with active_plan(AttentionPlan.of_layout(layout, backend)) as plan:
        yield plan


@contextmanager
def active_plan(plan: AttentionPlan) -> Iterator[AttentionPlan]:
    """``shared_prefix`` for a plan made by hand (a chunk, or answers over a cache)."""
    token = _active.set(plan)
    try:
        yield plan
    finally:
        _active.reset(token)
    if plan.total_layers_served < max(plan.expected_layers, 1):
        raise UserError(
            f"only {plan.total_layers_served} of the model's {plan.expected_layers or 'unknown'} layers went "
            "through transformers' attention interface; recurrent or custom layers would mix the answers",
            hint=ONE_BY_ONE,
        )


@contextmanager
def listen_to_attention(listener: AttentionListener) -> Iterator[None]:
    """Show `listener` the queries and keys of every layer that runs inside, under a plan."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def enable_shared_prefix(model: nn.Module, backend: str | None = None) -> nn.Module:
    """Switch a loaded model (PEFT-wrapped or not) to this attention; returns the same object.

    A sequence classifier's ``forward`` also learns ``layout=``: with it, ``logits`` are ``(A, num_labels)``, one
    row an answer. The setting lives in memory only: what ``save_pretrained`` writes is a plain model.

    Raises:
        UserError: the model's class does not use the attention interface.
    """
    inner = unwrap(model)
    if not inner._can_set_attn_implementation():
        raise UserError(
            f"{type(inner).__name__} does not use transformers' attention interface", hint=ONE_BY_ONE
        )
    inner.set_attn_implementation(NAME)
    inner._shared_prefix_backend = backend
    if hasattr(inner, "score") and "layout" not in vars(inner).get("_shared_prefix_wraps", ()):
        inner._shared_prefix_wraps = ("layout",)
        inner.forward = types.MethodType(_classifier_forward(type(inner).forward), inner)
    return model


def _classifier_forward(original: Any) -> Any:
    def forward(self: Any, *args: Any, layout: Layout | None = None, **kwargs: Any) -> Any:
        if layout is None:
            return original(self, *args, **kwargs)
        input_ids = args[0] if args else kwargs["input_ids"]
        hidden_T_H = shared_forward(self, input_ids, layout)
        scored_A_H = hidden_T_H[layout.score_index(hidden_T_H.device)]
        # bf16 has no points between 8.00 and 8.06: the head runs in the type its weights are kept in.
        with torch.autocast(scored_A_H.device.type, enabled=False):
            logits_A_D = self.score(scored_A_H.to(next(self.score.parameters()).dtype))
        return SequenceClassifierOutputWithPast(logits=logits_A_D)

    return forward


def shared_forward(
    model: nn.Module, input_ids: torch.Tensor, layout: Layout, backend: str | None = None
) -> torch.Tensor:
    """Final hidden states ``(T, H)`` of a packed sequence ``(1, T)``, with gradients when they are enabled.

    The backbone inside ``model`` is called directly; under DDP or FSDP call the wrapped model instead (see the
    module docstring), whose hooks must run.

    Raises:
        UserError: the model cannot be exact under this layout.
    """
    inner = unwrap(model)
    backend = backend or getattr(inner, "_shared_prefix_backend", None)
    with shared_prefix(layout, backend):
        out = inner.base_model(
            input_ids=input_ids, position_ids=layout.position_ids(input_ids.device), use_cache=False
        )
    return out.last_hidden_state[0]


def hidden_one_by_one(model: nn.Module, prefix: TokenIds, answers: Sequence[TokenIds]) -> torch.Tensor:
    """Final hidden states ``(N, H)`` at each answer's last token, every answer in a sequence of its own.

    What a shared prefix must equal, and what runs for models that cannot share one.
    """
    return torch.stack([forward_alone(model, prefix, answer)[-1] for answer in answers])


def forward_alone(model: nn.Module, prefix: TokenIds, answer: TokenIds) -> torch.Tensor:
    """Final hidden states ``(T, H)`` of one answer in a sequence of its own."""
    inner = unwrap(model)
    input_ids = join_parts([prefix, answer], inner.device)
    return inner.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside PEFT, DDP and other wrappers; LoRA layers stay in it."""
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "module"):
            inner = inner.module
        else:
            raise TypeError(f"no transformers model inside {type(model).__name__}")
    return inner


def _mask_interface(**kwargs: Any) -> Any:
    """What the model takes for its mask: the plan when one is active, SDPA's mask otherwise."""
    plan = _active.get()
    if plan is None:
        return sdpa_mask(**kwargs)
    config = kwargs["config"].get_text_config()
    if kwargs["batch_size"] != 1:
        raise ValueError(f"a layout describes one packed sequence, got a batch of {kwargs['batch_size']}")
    attention_mask = kwargs.get("attention_mask")
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("a packed sequence has no padding, but the attention mask hides tokens")
    if kwargs.get("use_vmap"):
        raise UserError(
            "this model changes the causal mask, which a shared prefix cannot keep", hint=ONE_BY_ONE
        )
    if getattr(config, "attention_chunk_size", None) is not None:
        raise UserError("attention in chunks of fixed size cannot share a prefix", hint=ONE_BY_ONE)
    _check_rope(config, plan)
    plan.expected_layers = getattr(config, "num_hidden_layers", 1)
    return plan.with_window(kwargs.get("local_size"))


def _attention_interface(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query ``(1, Hq, Tq, D)``, key and value ``(1, Hkv, Tk, D)`` → ``(1, Tq, Hq, D)``."""
    if not isinstance(attention_mask, AttentionPlan):
        if _active.get() is not None:
            raise UserError(
                f"{type(module).__name__} makes its own attention mask, so answers would see each other",
                hint=ONE_BY_ONE,
            )
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    plan = attention_mask
    _check_arguments(module, dropout, kwargs)
    _check_positions(plan, kwargs.get("position_ids"))
    plan.layers_served += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Under autocast rotary embeddings leave q and k in fp32 beside a bf16 v; SDPA would be cast, so are we.
    device = query.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else value.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    if listener := _listener.get():
        listener(q, k, plan, scale)
    kernel = choose_kernel(device, dtype, plan.kernel_name, max(q.shape[-1], v.shape[-1]))
    return attend(q, k, v, plan, kernel, scale).unsqueeze(0), None


def _check_positions(plan: AttentionPlan, position_ids: Any) -> None:
    """Once a forward pass, for models that hand positions down to their layers."""
    if plan.layers_served or not torch.is_tensor(position_ids) or position_ids.ndim != 2:
        return
    same_length = position_ids.shape[1] == plan.q_length  # else ``attend`` says so
    if same_length and not torch.equal(position_ids[0].cpu(), plan.positions):
        raise ValueError("the model got other positions than the layout's: pass layout.position_ids()")


_UNKNOWN = {
    "softcap": "attention scores with a soft cap",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias",
    "alibi_slopes": "ALiBi",
    "indices": "sparse attention",
    "cu_seq_lens_q": "its own packing",
    "block_table": "a paged cache",
    "cache": "a paged cache",
}


def _check_arguments(module: nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise UserError(
            f"attention dropout of {dropout} draws other numbers in a shared sequence",
            hint="set attention_dropout to 0",
        )
    for name, meaning in _UNKNOWN.items():
        if kwargs.get(name) is not None:
            raise UserError(
                f"{type(module).__name__} uses {meaning}, which is not supported here", hint=ONE_BY_ONE
            )
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UserError(f"{type(module).__name__} is not causal", hint=ONE_BY_ONE)


def _check_rope(config: Any, plan: AttentionPlan) -> None:
    """Dynamic and long RoPE choose frequencies by the longest position of a call: all sequences must agree."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in nested or [parameters]:
        kind = rope.get("rope_type", "default")
        if kind != "longrope" and "dynamic" not in kind:
            continue
        limit = rope.get("original_max_position_embeddings")
        limit = limit or getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
        lengths = plan.whole_lengths
        long = [length > limit for length in lengths]
        same = not any(long) or (all(long) and (kind == "longrope" or len(set(lengths)) == 1))
        if not same:
            raise UserError(
                f"{kind} RoPE changes at {limit} tokens, and these sequences have {min(lengths)} to "
                f"{max(lengths)}: in one call they would not get the frequencies they get alone",
                hint=ONE_BY_ONE,
            )


AttentionInterface.register(NAME, _attention_interface)
AttentionMaskInterface.register(NAME, _mask_interface)
