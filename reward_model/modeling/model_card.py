"""The README.md of a trained model: what it is, how to use it, and how well it scores documents it never read.

In: settings, counts and held-out metrics of a run. Out: Markdown with the metadata block model hubs read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from judge_pipeline.statistics.bootstrap import FEW_DOCUMENTS
from reward_model.modeling.fidelity_card import fidelity_section
from reward_model.modeling.model import Manifest


@dataclass(frozen=True)
class CardFacts:
    """What a card tells about a run."""

    manifest: Manifest
    metrics: Mapping[str, float]
    """Held-out metrics, `eval_…`; empty when nothing was held out."""
    constant_mae: Mapping[str, float]
    """MAE of always answering the training mean, per dimension."""
    train_prompts: int
    train_answers: int
    held_out_prompts: int
    held_out_documents: int
    settings: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=tuple)
    readouts: str = ""
    """Figures of the readout beside those of the plain head, Markdown; empty where there is the plain head alone."""


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def metrics_table(facts: CardFacts) -> str:
    """Markdown table, a row a dimension and one for the reward."""
    lines = [
        "| | Spearman within prompts | pairs in order | MAE (points) | MAE of the mean label |",
        "|---|---|---|---|---|",
    ]
    for name in [*facts.manifest.dimensions, "reward"]:
        cells = [facts.metrics.get(f"eval_{name}_{kind}") for kind in ("spearman", "pair_accuracy", "mae")]
        lines.append(
            f"| {name} | " + " | ".join(map(_cell, cells)) + f" | {_cell(facts.constant_mae.get(name))} |"
        )
    return "\n".join(lines)


def _fidelity(facts: CardFacts) -> str:
    if not facts.metrics:
        return "No documents were held out, so nothing is known about new ones: run `reward-model evaluate`."
    head = f"On {facts.held_out_prompts} prompts over {facts.held_out_documents} documents, none of which the fit that scores it was trained on:"
    if "eval_preference_accuracy" in facts.metrics:
        accuracy = facts.metrics["eval_preference_accuracy"]
        return f"{head}\n\nPeople's choices predicted: {accuracy:.1%} (chance: 50%)."
    small = facts.held_out_documents < FEW_DOCUMENTS
    warning = "\n\nSo few documents make these figures uncertain." if small else ""
    readouts = f"\n\n{facts.readouts}" if facts.readouts else ""
    return f"{head}\n\n{metrics_table(facts)}{warning}{readouts}\n\nConfidence intervals and baselines: `reward-model evaluate`."


def render_card(facts: CardFacts) -> str:
    """The whole README.md."""
    manifest = facts.manifest
    block = yaml.safe_dump(
        {
            "base_model": manifest.base_model,
            "library_name": "transformers",
            "pipeline_tag": "text-classification",
            "tags": ["reward-model", "long-context"],
        },
        sort_keys=False,
    )
    settings = "\n".join(f"- {name}: {value}" for name, value in facts.settings.items())
    notes = "\n".join(f"- {note}" for note in facts.notes)
    weights = ", ".join(
        f"{name} {weight:g}" for name, weight in zip(manifest.dimensions, manifest.weight_list(), strict=True)
    )
    return f"""---
{block}---

# Long-context reward model

Scores an answer to a question about a long document: {", ".join(manifest.dimensions)}, each in points 0–10, 10
best. The reward is their weighted mean ({weights}). Trained from `{manifest.base_model}` on
{facts.train_answers} answers to {facts.train_prompts} prompts; window {manifest.max_length} tokens.

## Use

```bash
reward-model score THIS_DIRECTORY prompts.jsonl --output scored.jsonl
```

```python
from reward_model.scoring.scorer import RewardModel

model = RewardModel.from_pretrained("THIS_DIRECTORY")
points = model.score(context, query, [answer_1, answer_2])  # (2, {len(manifest.dimensions)})
```

It is a plain `AutoModelForSequenceClassification` with `problem_type="regression"`; the outputs are the points. The
text of a prompt is laid out as `reward_model.json` says.

{fidelity_section(_fidelity(facts))}

## Training

{settings}
{notes}
"""
