"""Settings that every trainer of this project has: the reward model's and DPO's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from judge_pipeline.common.config import Config
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import HOW, RewardMethod


class LoraSettings(Config):
    """Shape of the adapter."""

    rank: int = Field(default=16, ge=1, description="rank of the LoRA matrices")
    alpha: float = Field(default=32, gt=0, description="LoRA scale; the update is multiplied by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the LoRA matrices")
    targets: list[str] = Field(
        default=["all-linear"], description="layers that get an adapter, as PEFT names them"
    )


class TrainingSettings(Config):
    """What a run of any trainer is told; `resolved_*` methods say what "auto" means on this machine."""

    LEARNING_RATES: ClassVar[dict[RewardMethod, float]]
    """Peak rate of each method where none is given."""
    BF16_ON_CPU: ClassVar[bool]
    """Whether automatic precision takes bf16 on a CPU that computes in it natively."""

    output: Path = Field(description="directory of the trained model")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=HOW)
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="share of documents held out; 0 holds out none")
    method: RewardMethod = Field("lora", description="train all weights or an adapter")
    lora: LoraSettings = LoraSettings()
    learning_rate: float | None
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    seed: int
    precision: Literal["auto", "fp32", "bf16"]
    device: Literal["auto", "cpu"] = Field(
        "auto", description="cpu leaves a GPU unused", json_schema_extra=HOW
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="recompute activations to save memory; by default on a GPU only",
        json_schema_extra=HOW,
    )
    eval_steps: int | None = Field(
        None, ge=1, description="steps between evaluations; by default one an epoch"
    )
    report_to: Literal["none", "tensorboard", "trackio"] = Field(
        "none", description="tracker to write to, beside metrics.jsonl", json_schema_extra=HOW
    )

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.output / "checkpoints"

    def resolved_bf16(self) -> bool:
        """Whether to compute in bf16 on this machine."""
        if self.precision != "auto":
            return self.precision == "bf16"
        import torch

        if self.device == "auto" and torch.cuda.is_available():
            return torch.cuda.is_bf16_supported()
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return self.BF16_ON_CPU and bool(native)

    def resolved_learning_rate(self) -> float:
        """Peak learning rate."""
        return self.learning_rate or self.LEARNING_RATES[self.method]

    def resolved_checkpointing(self) -> bool:
        """Whether to recompute activations."""
        if self.gradient_checkpointing is not None:
            return self.gradient_checkpointing
        import torch

        return self.device == "auto" and torch.cuda.is_available()

    def trainer_arguments(self, has_held_out: bool) -> dict[str, Any]:
        """What both trainers' `TrainingArguments` take from these settings."""
        import torch

        return {
            "output_dir": str(self.checkpoints),
            "learning_rate": self.resolved_learning_rate(),
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.resolved_bf16(),
            # bf16 runs on a CPU only when the CPU is named
            "use_cpu": self.device == "cpu" or not torch.accelerator.is_available(),
            "eval_strategy": "no" if not has_held_out else "steps" if self.eval_steps else "epoch",
            "eval_steps": self.eval_steps,
            "save_total_limit": 2,
            # TensorBoard's files belong beside the checkpoints, not among them: see `callbacks.tensorboard`.
            "report_to": [self.report_to] if self.report_to == "trackio" else [],
            "run_name": self.output.name,
            "logging_nan_inf_filter": False,  # a loss that is not finite must stop the run, not be hidden
            "seed": self.seed,
            "disable_tqdm": True,
        }
