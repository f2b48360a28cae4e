"""What an answer costs: the judge's calls and tokens as its labels tell, the model's tokens, seconds and operations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from judge_pipeline.common.records import Label
from reward_model.data.batches import EncodedExample
from reward_model.modeling.features import decoder_layers, read_features
from scripts.bench.distil_data import TOKEN_BUDGET

TIMED_PROMPTS = 2


def judge_cost(labels: Sequence[Label]) -> dict[str, float]:
    """Means over answers of what the labels' `usage` counts."""
    found: dict[str, float] = {}
    usages = [label.usage.model_dump() for label in labels if label.usage is not None]
    for name in usages[0] if usages else ():
        found[name] = round(float(np.mean([usage[name] or 0.0 for usage in usages])), 1)
    return found


def model_cost(model: nn.Module, items: Sequence[EncodedExample], layer: int) -> dict[str, Any]:
    """Tokens and multiply-adds an answer when the model is cut at `layer`, and seconds with all layers on one core.

    Operations: 2 · parameters of the layers that run · tokens; attention over the document is left out (at 1,000 tokens
    it is a few per cent).
    """
    layers = decoder_layers(model)
    parameters = [sum(p.numel() for p in one.parameters()) for one in layers]
    answers = sum(len(item.answers) for item in items)
    own = sum(item.shape.total for item in items)
    bare = sum(item.withheld().shape.total for item in items)
    some = list(items[:TIMED_PROMPTS])
    started = time.process_time()
    read_features(
        model,
        [*some, *(item.withheld() for item in some)],
        token_budget=TOKEN_BUDGET,
        layers=[layer],
        pooling="mean",
    )
    seconds = time.process_time() - started
    tokens = (own + bare) / answers
    return {
        "layer": layer,
        "layers": len(layers),
        "tokens": round(own / answers, 1),
        "tokens_behind_the_bare_question": round(bare / answers, 1),
        "tokens_one_by_one": round(sum(item.shape.total_one_by_one for item in items) / answers, 1),
        "gigaflops": round(2 * sum(parameters[:layer]) * tokens / 1e9, 1),
        "gigaflops_all_layers": round(2 * sum(parameters) * tokens / 1e9, 1),
        "cpu_seconds_all_layers": round(seconds / sum(len(item.answers) for item in some), 2),
        "threads": torch.get_num_threads(),
    }
