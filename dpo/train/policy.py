"""The model of a run: loaded as its method wants it, and the length of its window."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.train.train_config import TrainConfig
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.local_models import adapter_base, window_of
from reward_model.training.adapters import check_targets, keep_gradients_on_cpu, weight_options
from reward_model.training.guards import say


def load_policy(config: TrainConfig, path: str) -> Any:
    """The model to train: fp32 weights for full training, those of the run's precision under an adapter.

    An adapter is loaded over its base, to be trained further.

    Raises:
        UserError: it does not load, is an adapter that the method cannot train, or QLoRA lacks bitsandbytes.
    """
    base = adapter_base(path)
    if base is not None:
        _check_start(config)
    options = weight_options(config)
    try:
        model = AutoModelForCausalLM.from_pretrained(resolve_model(base) if base else path, **options)
    except (OSError, ValueError) as error:
        message = f"the model '{base or config.model}' does not load: {error}"
        raise UserError(message, "name a model folder or hub model") from error
    keep_gradients_on_cpu(model)
    if base is not None:
        say(
            f"going on from the adapter {config.model}, whose shape stays; the reference is its {config.reference_weights}"
        )
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    if config.method != "full":
        _check_adapter(model, config)
    return model


def _check_start(config: TrainConfig) -> None:
    """Refuse what an adapter cannot start."""
    if config.method == "full":
        raise UserError(
            f"'{config.model}' is an adapter, and --method full trains plain models",
            f"make one of it: dpo merge {config.model} --output DIR",
        )
    if config.reference_weights == "base" and config.resolved_precompute():
        raise UserError("--reference-weights base is asked at every step", "give --reference model")


def _check_adapter(model: Any, config: TrainConfig) -> None:
    """Refuse targets that are no layer's name, and the LM head."""
    check_targets(model, config.lora)
    head = next(name for name, part in model.named_modules() if part is model.get_output_embeddings())
    if head in config.lora.targets:
        raise UserError(
            f"--lora.targets: '{head}' is the LM head, and log-probabilities are computed from its weights alone",
            "leave it out; all-linear does",
        )


def max_length_of(config: TrainConfig, path: str) -> int:
    """Tokens a prompt and an answer may have: the setting, bounded by the model's window."""
    window = window_of(AutoConfig.from_pretrained(resolve_model(adapter_base(path) or path)))
    if window is None and config.max_length is None:
        raise UserError(f"'{config.model}' does not say how long its window is", "give --max-length")
    if window is not None and config.max_length is not None and config.max_length > window:
        raise UserError(
            f"--max-length {config.max_length} is over the window of '{config.model}', {window} tokens"
        )
    return config.max_length or int(window or 0)
