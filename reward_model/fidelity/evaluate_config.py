"""Settings of `reward-model evaluate`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from judge_pipeline.common.config import Config
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import (
    TOKEN_BUDGET,
    Documents,
    Likelihood,
    OnOff,
    Overflow,
    ReadoutChoice,
    SharedPrefix,
)


class EvaluateConfig(Config):
    """Settings of `reward-model evaluate`."""

    model: Path = Field(description="a trained reward model", json_schema_extra={"positional": True})
    labels: Path = Field(
        description="a label run (the judge), or prompts with `human` or `preferences` (people)",
        json_schema_extra={"positional": True},
    )
    output: Path = Field(description="directory for fidelity.json, fidelity.md, scored.jsonl and report.html")
    prompts: list[Path] = Field([], description="the labelled prompts; default: those the label run read")
    scores: Path | None = Field(
        None, description="a file `reward-model score` wrote with this model; saves scoring again"
    )
    folds: bool = Field(
        False,
        description="judge a model of `train --folds` by the scores each document got while it was held out, kept beside "
        "the model; nothing is read again",
    )
    contrasts: Path | None = Field(
        None,
        description="a file `reward-model augment` wrote: is the answer that was made worse scored lower, with the "
        "document and without",
    )
    second_labels: Path | None = Field(
        None, description="a second label run over the same answers: the judge's own ceiling"
    )
    documents: Documents = Field("auto", description="auto: only documents the model was not trained on; all")
    controls: OnOff = Field(
        "on",
        description="score the answers again without their document and with another one in its place, about as many "
        "tokens as the scores themselves",
    )
    likelihood: Likelihood = Field(
        "auto",
        description="the base model's likelihood of the answers as a baseline, one more reading; auto: when it needs "
        "no download",
    )
    stack_labels: Path | None = Field(
        None,
        description="labels of other documents to fit the stack of all baselines to, such as those of training; by "
        "default it is fitted by folds over the documents evaluated",
    )
    overflow: Overflow = Field("error", description="prompts over the window: error, or skip and count them")
    readout: ReadoutChoice = Field(
        "best", description="best: the readout beside the plain head, where the model has one; plain"
    )
    shared_prefix: SharedPrefix = Field(
        "on",
        description="read a document once for all answers, or off for models that cannot",
        json_schema_extra={"identity": False},
    )
    embedding_model: str = Field("minilm", description="model of the similarity baselines, or `none`")
    card: bool = Field(
        True,
        description="put the tables into the model's README.md as well",
        json_schema_extra={"identity": False},
    )
    token_budget: int = Field(
        TOKEN_BUDGET, ge=1, description="tokens read at once", json_schema_extra={"identity": False}
    )
    bootstrap: int = Field(1000, ge=10, description="resamples of the documents for the 95% intervals")
    seed: int = Field(0, description="of the resamples and of the random baseline")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra={"identity": False})

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        if self.folds and self.scores is not None:
            raise ValueError("folds and scores: one or the other")
        return self
