"""The probe as a model directory: untouched base weights with the taught head, and the readout beside them.

In: a `ProbeResult`. Out: what `--method probe` writes, and what other methods write when training did not beat it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from judge_pipeline.common.record_files import write_records, write_text
from reward_model.modeling.head import score_weight
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.training.adapters import compute_dtype
from reward_model.training.probe_figures import markdown_section, pair_score
from reward_model.training.probe_run import ProbeResult
from reward_model.training.stacking import stack_section
from reward_model.training.train_config import TrainConfig

REPORT = "probe.json"


@torch.no_grad()
def set_head(model: nn.Module, weight_D_H: torch.Tensor) -> None:
    """Copy weights into the plain head."""
    weight = score_weight(model)
    weight.copy_(weight_D_H.to(weight))


def untouched(config: TrainConfig, backbone: Backbone, probe: ProbeResult) -> nn.Module:
    """The base model with the taught head: the model at hand, or loaded again where that one was trained."""
    model = backbone.model
    if config.method != "probe":
        model = load_backbone_for_rm(
            config.base_model,
            backbone.manifest.dimensions,
            compute_dtype(config),
            max_length=config.max_length,
            rope_parameters=config.rope_parameters(),
        ).model
    set_head(model, probe.head_D_H)
    return model


def trained_score(metrics: Mapping[str, float]) -> float:
    """Mean over outputs and reward of the held-out pairs that the trained plain head orders right."""
    return metrics.get("eval_pair_accuracy", math.nan)


def probe_wins(metrics: Mapping[str, float], probe: ProbeResult) -> bool:
    """Whether training did not beat the probe's readout on held-out documents; False where nothing was held out."""
    if probe.figures is None:
        return False
    return not trained_score(metrics) > pair_score(probe.figures, "readout")


def verdict(config: TrainConfig, metrics: Mapping[str, float], probe: ProbeResult) -> str:
    """Which model is kept and why, in a sentence."""
    if probe.figures is None:
        return "No documents were held out, so the trained model was not compared with the probe it started from."
    before, after = pair_score(probe.figures, "readout"), trained_score(metrics)
    found = (
        f"Mean over outputs and reward of held-out pairs in order: {after:.1%} after --method {config.method}, "
        f"{before:.1%} by the probe of the frozen model"
    )
    kept = (
        "training did not beat the probe, which is kept"
        if probe_wins(metrics, probe)
        else "the trained model is kept"
    )
    return f"{found}: {kept}."


def probe_metrics(probe: ProbeResult) -> dict[str, float]:
    """Held-out metrics as training logs them: `eval_…` of the readout, `plain_…` of the taught plain head."""
    names = {"readout": "eval", "plain": "plain"}
    return {
        f"{names[scorer]}_{name}": value
        for scorer, metrics in probe.report["metrics"].items()
        for name, value in metrics.items()
    }


def probe_section(probe: ProbeResult) -> str:
    """What the card says of a readout; empty where nothing was held out."""
    figures = markdown_section(probe.figures, probe.readout.spec.describe()) if probe.figures else ""
    return "\n\n".join(part for part in (figures, stack_section(probe.report)) if part)


def write_report(directory: Path, probe: ProbeResult) -> None:
    """`probe.json`: how the readout was chosen, and its figures."""
    write_text(directory / REPORT, json.dumps(probe.report, indent=1) + "\n")


def write_metrics(directory: Path, probe: ProbeResult) -> None:
    """`metrics.jsonl` of a run without steps."""
    write_records(directory / "metrics.jsonl", [{"step": 0, "epoch": 0.0, **probe_metrics(probe)}])
