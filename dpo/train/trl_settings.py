"""Our settings as TRL's `DPOConfig`; apart from `train_config`, because importing TRL takes seconds."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from typing import Any

import yaml
from trl import DPOConfig, DPOTrainer

from dpo.train.train_config import TrainConfig
from judge_pipeline.common.errors import UserError

FREE = (
    "run_name",
    "logging_nan_inf_filter",
    "report_to",
    "save_strategy",
    "save_total_limit",
    "disable_tqdm",
)
"""What we set, and `trainer_args` may set otherwise: no setting of ours says it, or not all that TRL can."""

OTHER_NAMES = {
    "output_dir": "--output",
    "bf16": "--precision",
    "use_cpu": "--device",
    "eval_strategy": "--eval-steps, and --eval-fraction 0 for none",
    "precompute_ref_log_probs": "--reference",
}
"""TRL's names of what is a setting of ours under another one."""


def loss_types() -> list[str]:
    """The losses of the installed TRL, which names them in its code alone."""
    return re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer._compute_loss))


def _value(text: Any) -> Any:
    """A trainer argument from the command line; YAML takes 1e-6 for a word and no for a truth."""
    value = yaml.safe_load(text) if isinstance(text, str) else text
    if isinstance(value, bool) and str(text).lower() not in ("true", "false"):
        return text
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def trl_config(config: TrainConfig, evaluates: bool) -> DPOConfig:
    """TRL's configuration; its `max_length` stays None because lengths are checked, not cut.

    Raises:
        UserError: a loss or a field of `trainer_args` that TRL does not have, or a field that has a setting of its own.
    """
    losses = loss_types()
    for name in config.loss_type:
        if name not in losses:
            close = difflib.get_close_matches(name, losses, n=1, cutoff=0.0)
            raise UserError(
                f"--loss-type: TRL has no loss '{name}'",
                f"did you mean '{close[0]}'? It has: {', '.join(losses)}",
            )
    known = {field.name for field in dataclasses.fields(DPOConfig) if field.init}
    ours: dict[str, Any] = {
        **{name: getattr(config, name) for name in TrainConfig.model_fields if name in known},
        **config.trainer_arguments(has_held_out=evaluates),
        "precompute_ref_log_probs": config.resolved_precompute(),
        "max_length": None,
        "gradient_checkpointing": config.resolved_checkpointing(),
        "save_strategy": "steps",
    }
    free = {"project": "dpo", **{name: ours.pop(name) for name in FREE}}  # the project is trackio's
    for name, value in config.trainer_args.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"trainer_args: TRL's DPOConfig has no '{name}'", f"did you mean '{close[0]}'?")
        if name in ours:
            flag = OTHER_NAMES.get(name, "--" + name.replace("_", "-"))
            raise UserError(f"trainer_args: '{name}' has a setting of its own", f"give {flag}")
        free[name] = _value(value)
    try:
        return DPOConfig(**{**free, **ours})
    except (ValueError, TypeError) as error:
        raise UserError(f"TRL refuses these settings: {error}") from error
