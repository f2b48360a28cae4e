"""Our settings as TRL's `DPOConfig`; apart from `train_config`, because importing TRL takes seconds."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import yaml
from trl import DPOConfig

from dpo.train.train_config import TrainConfig
from judge_pipeline.common.errors import UserError


def trl_config(config: TrainConfig, evaluates: bool) -> DPOConfig:
    """TRL's configuration; its `max_length` stays None because lengths are checked, not cut.

    Raises:
        UserError: `trainer_args` names a field that TRL does not have, or one that has a setting of its own.
    """
    known = {field.name for field in dataclasses.fields(DPOConfig) if field.init}
    ours: dict[str, Any] = {
        **{name: getattr(config, name) for name in TrainConfig.model_fields if name in known},
        **config.trainer_arguments(has_held_out=evaluates),
        "precompute_ref_log_probs": config.resolved_precompute(),
        "max_length": None,
        "gradient_checkpointing": config.resolved_checkpointing(),
        "save_strategy": "steps",
    }
    free = {"run_name": ours.pop("run_name"), "logging_nan_inf_filter": ours.pop("logging_nan_inf_filter")}
    free["project"] = "dpo"  # trackio's
    for name, value in config.trainer_args.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"trainer_args: TRL's DPOConfig has no '{name}'", f"did you mean '{close[0]}'?")
        if name in ours:
            raise UserError(f"trainer_args: '{name}' has a setting of its own", "see dpo train --help")
        ours[name] = yaml.safe_load(value) if isinstance(value, str) else value
    try:
        return DPOConfig(**{**free, **ours})
    except (ValueError, TypeError) as error:
        raise UserError(f"TRL refuses these settings: {error}") from error
