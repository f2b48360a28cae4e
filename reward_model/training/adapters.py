"""LoRA adapters and 4-bit base models (QLoRA, arXiv 2305.14314), the same for a reward model and for DPO."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.optional_packages import INSTALL_LINES
from reward_model.training.settings import LoraSettings, TrainingSettings


def compute_dtype(config: TrainingSettings) -> torch.dtype:
    """What the run computes in, and an adapter is merged in."""
    return torch.bfloat16 if config.resolved_bf16() else torch.float32


def weight_options(config: TrainingSettings, full_precision: Sequence[str] = ()) -> dict[str, Any]:
    """`dtype` and, for QLoRA, `quantization_config` of the base model, as `from_pretrained` takes them.

    Full training keeps its own copy in fp32: bf16 weights would lose updates smaller than 1/256.

    Args:
        config: method and precision.
        full_precision: modules that are not quantised.

    Raises:
        UserError: QLoRA without bitsandbytes.
    """
    compute = compute_dtype(config)
    if config.method != "qlora":
        return {"dtype": torch.float32 if config.method == "full" else compute}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--method qlora needs bitsandbytes", INSTALL_LINES["bitsandbytes"])
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        # FSDP shards parameters of one type only, so the packed weights are stored as the others are.
        bnb_4bit_quant_storage=compute,
        llm_int8_skip_modules=list(full_precision) or None,
    )
    return {"dtype": compute, "quantization_config": quantisation}


def keep_gradients_on_cpu(model: nn.Module) -> None:
    """Turn off bitsandbytes' packing of 4-bit weights on CPUs with AVX512-BF16, which happens at the first
    evaluation: there is no gradient through packed weights."""
    layers: Iterable[Any] = model.modules()
    for module in layers:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_targets(model: nn.Module, lora: LoraSettings) -> None:
    """Raise UserError for a target that no layer of the model is called; PEFT would name them all at once, or none."""
    if lora.targets == ["all-linear"]:
        return
    kinds = (nn.Linear, nn.Embedding, Conv1D)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    names = {part for layer in layers for part in (layer, layer.rpartition(".")[2])}
    for target in lora.targets:
        if target in names or any(layer.endswith(f".{target}") for layer in layers):
            continue
        short = sorted({layer.rpartition(".")[2] for layer in layers})
        close = difflib.get_close_matches(target, short, n=1, cutoff=0.5)
        meant = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(
            f"--lora.targets: no layer is named '{target}'",
            f"{meant}There are {', '.join(short)}; all-linear takes all",
        )


def lora_config(lora: LoraSettings, task_type: str, modules_to_save: list[str] | None = None) -> LoraConfig:
    """PEFT's settings; only `all-linear` alone is a pattern to PEFT, other targets are names of layers."""
    return LoraConfig(
        task_type=task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets == ["all-linear"] else lora.targets,
        modules_to_save=modules_to_save,
    )
