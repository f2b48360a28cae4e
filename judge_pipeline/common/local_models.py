"""Causal language models loaded into this process: device, type of the weights, tokenizer, window, end tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.control_tokens import without_control_tokens
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_json

NAME_A_MODEL = "name a folder with a causal language model, a hub model, or 'smollm2'"


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 wherever the machine computes in it natively (measured: 2-3 times faster), else fp32.

    A GPU without bf16 gets fp16.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


ADAPTER_CONFIG = "adapter_config.json"


def adapter_base(path: str) -> str | None:
    """The model that the adapter in `path` was trained from; None for a model of its own."""
    config = read_json(Path(path) / ADAPTER_CONFIG)
    return str(config["base_model_name_or_path"]) if config else None


def load_tokenizer(path: str, name: str, role: str = "model") -> Any:
    """The tokenizer in `path`. Raises UserError, with the model's `name`, when there is none or no chat template."""
    base = adapter_base(path)
    if base is not None and not (Path(path) / "tokenizer_config.json").is_file():
        path = base  # adapters of other tools come without one
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        message = f"the tokenizer of the {role} '{name}' cannot be loaded: {error}"
        raise UserError(message, NAME_A_MODEL) from error
    if not tokenizer.chat_template:
        hint = "use an instruction-tuned model, or add chat_template.jinja to it"
        raise UserError(f"the {role} '{name}' has no chat template", hint)
    return tokenizer


def load_model(name: str, device: str = "auto", dtype: str = "auto", role: str = "model") -> tuple[Any, Any]:
    """Model (in eval mode, on its device) and tokenizer. Raises UserError when either cannot be loaded."""
    path = resolve_model(name)
    tokenizer = load_tokenizer(path, name, role)
    where = pick_device(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=pick_dtype(dtype, where))
    except (OSError, ValueError) as error:
        raise UserError(f"the {role} '{name}' cannot be loaded: {error}", NAME_A_MODEL) from error
    return model.to(where).eval(), tokenizer


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Ids of a conversation that waits for an answer, with the model's own chat template.

    What the messages say stays text: control tokens are the template's alone.
    """
    messages = [
        {**message, "content": without_control_tokens(tokenizer, message["content"])} for message in messages
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def window_of(config: Any) -> int | None:
    """Positions a model was made for; None when its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer: those of the generation settings and the tokenizer's own."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ends = {ids} if isinstance(ids, int) else set(ids or ())
    return (ends | {tokenizer.eos_token_id}) - {None}
