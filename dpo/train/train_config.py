"""Settings of `dpo train`. What TRL names, keeps TRL's name; what the reward model's trainer names, keeps that.

In: flags and YAML. Out: typed settings; `trl_settings` makes TRL's `DPOConfig` of them. Defaults are the paper's (LongReward,
section 4.1): β 0.15, λ 0.1 on the chosen answer's cross-entropy, learning rate 1e-6 for full training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from judge_pipeline.common.config import POSITIONAL
from reward_model.options import HOW, Method
from reward_model.training import settings as training


class LoraSettings(training.LoraSettings):
    """Shape of the adapter."""

    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout before the LoRA matrices (TRL turns it off)"
    )


class TrainConfig(training.TrainingSettings):
    """Settings of `dpo train`."""

    LEARNING_RATES: ClassVar = {"full": 1e-6, "lora": 1e-5, "qlora": 1e-5}
    BF16_ON_CPU = True

    pairs: Path = Field(description="preference pairs, .jsonl or .parquet", json_schema_extra=POSITIONAL)
    model: str = Field(
        description="model to train: the one that was sampled; smollm2, a folder, a hub name, or an adapter to go on from"
    )
    eval_pairs: Path | None = Field(None, description="held-out pairs, instead of a split by document")

    method: Method = Field("lora", description="train all weights or an adapter")
    lora: LoraSettings = LoraSettings()
    merge: bool = Field(
        False, description="LoRA: write a plain merged model, and the adapter into OUTPUT/adapter"
    )
    beta: float = Field(0.15, gt=0, description="DPO's β: how far the model may go from the reference")
    loss_type: list[str] = Field(
        ["sigmoid", "sft"], description="TRL's losses; sft is cross-entropy of chosen"
    )
    loss_weights: list[float] = Field(
        [1.0, 0.1],
        description="weight of each loss; the paper's λ is the second. By default sft beside another weighs 0.1, "
        "all else 1",
    )
    reference: Literal["auto", "precompute", "model"] = Field(
        "auto",
        description="reference log-probabilities: precompute them once and keep them on disk, or ask the model "
        "at every step (LoRA: its adapter disabled); auto: model for LoRA, precompute for full",
    )

    reference_weights: Literal["start", "base"] = Field(
        "start",
        description="where --model is an adapter, the reference: the adapter as it is, or the base it was trained on",
    )

    learning_rate: float | None = Field(
        None, gt=0, description="peak rate; by default 1e-6 full (the paper), 1e-5 LoRA and QLoRA"
    )
    lr_scheduler_type: str = Field("cosine", description="schedule, as transformers names it")
    warmup_steps: float = Field(0.1, ge=0, description="steps of warm-up; below 1 a share of all")
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    max_steps: int = Field(-1, description="stop after so many steps; -1 goes by epochs")
    per_device_train_batch_size: int = Field(1, ge=1, description="pairs in one packed sequence")
    per_device_eval_batch_size: int = Field(1, ge=1, description="held-out pairs in one packed sequence")
    gradient_accumulation_steps: int = Field(8, ge=1, description="sequences a process adds up before a step")
    seed: int = Field(0, description="of the split, the order and fresh adapters")
    trainer_args: dict[str, Any] = Field(
        default_factory=dict, description="any other field of TRL's DPOConfig, name=value,…"
    )

    max_length: int | None = Field(
        None, ge=2, description="longest prompt and answer, in tokens; by default the model's window"
    )
    overflow: Literal["error", "skip"] = Field(
        "error", description="pairs over max_length: error, or skip and count them; never cut"
    )
    allow_other_template: bool = Field(
        False, description="train although the answers were sampled with another chat template"
    )
    shared_prefix: Literal["on", "off"] = Field(
        "on", description="encode the prompt of a pair once; off: TRL's own computation"
    )
    tile: int | None = Field(
        None, ge=1, description="answer tokens through the LM head at a time; by default 2²⁵ / vocabulary",
        json_schema_extra=HOW,
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; auto: bf16 where the machine has it natively"
    )
    logging_steps: int = Field(
        1, ge=1, description="steps between lines of metrics.jsonl", json_schema_extra=HOW
    )
    save_steps: int = Field(50, ge=1, description="steps between checkpoints", json_schema_extra=HOW)
    keep_checkpoints: bool = Field(
        False, description="keep OUTPUT/checkpoints after the run", json_schema_extra=HOW
    )

    @model_validator(mode="before")
    @classmethod
    def _weights_of_losses(cls, values: Any) -> Any:
        losses = values.get("loss_type") if isinstance(values, dict) else None
        if isinstance(losses, list) and values.get("loss_weights") is None:
            light = 0.1 if len(losses) > 1 else 1.0
            values = {**values, "loss_weights": [light if name == "sft" else 1.0 for name in losses]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if len(self.loss_type) != len(self.loss_weights):
            raise ValueError(
                f"{len(self.loss_type)} losses in loss_type and {len(self.loss_weights)} loss_weights: give as many"
            )
        if self.merge and self.method == "full":
            raise ValueError("merge goes with LoRA; full training writes a plain model anyway")
        return self

    def resolved_precompute(self) -> bool:
        """Whether reference log-probabilities are computed before training."""
        return self.reference == "precompute" or (self.reference == "auto" and self.method == "full")
