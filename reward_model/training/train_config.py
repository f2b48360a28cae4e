"""Settings of `reward-model train`; see `settings` for those that every trainer has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from judge_pipeline.common.config import Config
from reward_model.options import HOW, Likelihood, LossName, Overflow, RewardMethod, Targets
from reward_model.training.settings import TrainingSettings

DEFAULT_BUDGET = 8192
DEFAULT_PROMPTS_PER_STEP = 16
MANY_PROMPTS = 10 * DEFAULT_PROMPTS_PER_STEP
"""Prompts from which on a run has a set number a step: an epoch then has ten steps at least."""


class LossSettings(Config):
    """Details of the losses."""

    kind: Literal["huber", "mse"] = Field(
        default="huber", description="error of the regression, in spreads of a label"
    )
    huber_delta: float = Field(
        default=1.0, gt=0, description="spreads up to which Huber's error is quadratic"
    )
    pairwise_weight: float = Field(
        default=1.0, gt=0, description="weight of the pairwise loss beside the regression"
    )
    min_gap: float = Field(default=0.0, ge=0, description="points up to which two answers count as tied")
    switch: float = Field(
        default=0.5, gt=0, lt=1, description="sequence: share of the run for regression alone"
    )
    anchor: float = Field(
        default=1.0,
        ge=0,
        description="sequence: weight of the regression in the pairwise phase; keeps points points",
    )
    level_weight: float = Field(
        default=1.0, ge=0, description="level+order: weight of the error of a prompt's mean"
    )
    residual_weight: float = Field(
        default=1.0,
        ge=0,
        description="level+order: weight of the error of what each answer differs by from its prompt's mean",
    )
    confidence: Literal["votes", "none"] = Field(
        default="votes",
        description="weigh targets by how well the judge's votes agree, where there are votes",
    )


class TrainConfig(TrainingSettings):
    """Settings of `reward-model train`."""

    LEARNING_RATES: ClassVar = {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4, "probe": 0.0}
    BF16_ON_CPU = False

    labels: Path = Field(
        description="label run directory, labels.jsonl, or a prompts file with human scores or preferences",
        json_schema_extra={"positional": True},
    )
    base_model: str = Field(description="model to start from: smollm2, a folder, or a hub name")

    method: RewardMethod = Field(
        "lora",
        description="probe: a readout of the frozen model, fitted in closed form in minutes; lora, qlora or full: "
        "training that starts from the probe and is kept where it beats it on held-out documents",
    )
    view: Literal["auto", "document", "difference", "both"] = Field(
        "auto",
        description="what the probe reads: states behind the document, what the document changes in them (of which "
        "nothing is left without it), or both; auto: by folds over documents",
    )
    log_probs: Likelihood = Field(
        "auto",
        description="probe: let the readout also see how likely the frozen model's own language head finds an answer, "
        "with the document and without (no layer can be cut then); auto: where that orders more answers right",
    )
    separate: float | Literal["auto"] = Field(
        "auto",
        description="probe: how far outputs that move together are brought to the correlations of their labels, 0 not at "
        "all, 1 the whole way; auto: as far as the order of answers suffers next to nothing by it",
    )
    folds: int = Field(
        0,
        ge=0,
        description="probe: learn from every document and measure by so many folds over them, each answer scored by a fit "
        "that read nothing of its document (DIR/folds, for `reward-model evaluate --folds`); 0: hold documents out",
    )
    stack: bool = Field(
        False,
        description="probe: add free baselines (length, overlap with the document, similarities) to the outputs where "
        "they order more answers right on documents out of the fit",
    )
    unlabelled: Path | None = Field(
        None, description="more prompts with answers, on which the plain head is taught what the readout says"
    )
    prompts: Path | None = Field(
        None, description="prompts the labels belong to, if run.yaml does not name them"
    )
    evidence: Literal["on", "off"] = Field(
        "on",
        description="learn from the judge's verdicts on single statements, where labels hold them, which sentences of "
        "an answer the document supports: what `reward-model score --explain` needs",
    )
    targets: Targets = Field(
        "auto",
        description="learn from judge, human or preferences; auto: judge from labels, human from prompts",
    )
    dimensions: list[str] | None = Field(
        None, min_length=1, description="outputs of the model, in order; by default those of the labels"
    )
    weights: dict[str, float] = Field(
        {}, description="weight of each dimension in the reward, a=2,b=1; 1 where not named"
    )
    allow_constant: bool = Field(False, description="go on when a dimension always has the same score")
    eval_labels: Path | None = Field(None, description="held-out labels, instead of a split by document")
    eval_prompts: Path | None = Field(None, description="prompts of --eval-labels")

    augment: Path | None = Field(
        None,
        description="file `reward-model augment` wrote: answers made worse on purpose, learnt beside the labels",
    )
    augment_weight: float = Field(
        0.3, gt=0, description="weight of the answers made worse on purpose beside the labels"
    )

    merge: bool = Field(
        True, description="save the adapter merged into a plain model; the adapter stays in DIR/adapter"
    )
    freeze_layers: int = Field(
        0, ge=0, description="lowest layers (and the embeddings) that stay as they are: less time and memory"
    )
    head_init: Literal["auto", "mean", "probe", "none"] = Field(
        "auto",
        description="start of the head: at the mean label, taught by the probe of the frozen model, or random; "
        "auto: probe, none with DeepSpeed ZeRO-3",
    )
    loss: LossName | Literal["auto"] = Field(
        "auto",
        description="regression, pairwise, regression+pairwise, sequence (regression, then pairwise), level+order "
        "(regression of prompt means and of distances from them, and pairwise) or preference; auto: level+order, "
        "preference for preferences",
    )
    loss_options: LossSettings = LossSettings()

    epochs: float = Field(3, gt=0, description="passes over the training prompts")
    learning_rate: float | None = Field(
        None, gt=0, description="peak of the cosine schedule; by default 1e-5 full, 1e-4 LoRA and QLoRA"
    )
    head_learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak rate of the score head, about the points an output may move in a step; by default a tenth "
        "of the labels' spread, a fiftieth from a probe; not where weights are sharded, or with DeepSpeed",
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps that warm up")
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens in a packed sequence, by default 8192; a longer prompt is a sequence of its own",
    )
    accumulation: int = Field(1, ge=1, description="packed sequences a process adds up before a step")
    prompts_per_step: int | None = Field(
        None,
        ge=1,
        description="prompts of an optimiser step over all processes, whatever the packing; by default 16 for runs of "
        f"{MANY_PROMPTS} prompts or more, otherwise those that --accumulation sequences hold",
    )
    seed: int = Field(0, description="of the split, the order of batches and fresh weights")

    max_length: int | None = Field(None, ge=1, description="longest sequence; by default the model's window")
    rope_type: str = Field("yarn", description="RoPE scaling, with --rope-factor")
    rope_factor: float | None = Field(None, gt=1, description="stretch the window this many times")
    overflow: Overflow = Field("error", description="prompts over the window: error, or skip and count them")

    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; auto: bf16 on a GPU that has it, fp32 on CPU"
    )
    shared_prefix: Literal["on", "off"] = Field(
        "on", description="read the document once for all answers, or off for models that cannot"
    )
    early_stopping: int = Field(
        3, ge=0, description="evaluations without a better one before stopping; 0 never"
    )
    best_metric: Literal["pair_accuracy", "loss"] = Field(
        "pair_accuracy",
        description="what the best checkpoint is best in, on held-out documents: pairs of a prompt in order, mean over "
        "outputs and reward (equal ones by their loss), or the loss",
    )
    log_steps: int = Field(1, ge=1, description="steps between lines of metrics.jsonl", json_schema_extra=HOW)
    keep_checkpoints: bool = Field(
        False, description="keep DIR/checkpoints after the run", json_schema_extra=HOW
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.method != "full" and self.freeze_layers:
            raise ValueError(
                "freeze_layers goes with method=full; an adapter leaves the model's weights as they are"
            )
        if self.method == "probe" and self.head_init not in ("auto", "probe"):
            raise ValueError("head_init goes with training: the head of method=probe is taught by the probe")
        if self.separate != "auto" and not 0 <= self.separate <= 1:
            raise ValueError("separate: auto, or a number from 0 to 1")
        if self.folds and (self.method != "probe" or self.folds == 1):
            raise ValueError("folds goes with method=probe, and is 2 or more")
        if self.folds and self.eval_labels:
            raise ValueError("folds and eval_labels: one or the other")
        if self.stack and self.method != "probe":
            raise ValueError("stack goes with method=probe")
        if self.prompts_per_step and self.accumulation > 1:
            raise ValueError("prompts_per_step and accumulation: one or the other")
        if self.eval_prompts and not self.eval_labels:
            raise ValueError("eval_prompts needs eval_labels")
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights: a weight below 0")
        return self

    def resolved_prompts_per_step(self, prompts: int) -> int | None:
        """Prompts of a step in a run on so many; None: what the accumulated sequences hold."""
        if self.prompts_per_step or self.accumulation > 1:
            return self.prompts_per_step
        return DEFAULT_PROMPTS_PER_STEP if prompts >= MANY_PROMPTS else None

    def rope_parameters(self) -> dict[str, Any] | None:
        """Changes to the model's RoPE, if any."""
        return {"rope_type": self.rope_type, "factor": self.rope_factor} if self.rope_factor else None
