"""`reward-model augment`: a prompts file with answers that are worse for a reason that is known.

In: prompts with answers (JSONL or Parquet). Out: prompt records with the changed answers, for `reward-model train
--augment`; beside them `FILE.run.yaml` and `FILE.summary.json`: what was made, and how well wording alone tells each
damage apart.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import read_prompts, write_records, write_text
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import prepare_run
from reward_model.augment.augment_config import AugmentConfig
from reward_model.augment.generate import Plan, augment
from reward_model.augment.style import Style, style_of
from reward_model.data.contrasts import pairs_of

TELLING = 0.6
"""An area under the curve from which on wording gives a damage away."""


def plan_of(config: AugmentConfig) -> Plan:
    """What to make."""
    return Plan(
        dimensions=tuple(config.dimensions),
        strengths=tuple(config.strengths),
        documents=config.document_contrast,
        **config.model_dump(
            include={"answers", "per_answer", "keep_length", "length_tolerance", "neutral", "seed"}
        ),
    )


def run(config: AugmentConfig) -> int:
    """Make the file and say what is in it.

    Raises:
        UserError, DataError: bad input, or nothing in it can be changed.
    """
    prompts = list(read_prompts(config.prompts, need_responses=True))
    resuming = prepare_run(
        config.output,
        config,
        "reward-model augment",
        config.existing,
        [config.prompts],
        run_file=Path(f"{config.output}.run.yaml"),
    )
    if resuming and config.output.is_file():
        print(f"{config.output} is made already: nothing to do")
        return 0
    made: list[Prompt] = []
    with Progress(len(prompts), "changing answers", "prompts") as progress:
        done = 0
        for record in augment(prompts, plan_of(config)):
            made.append(record)
            if not hasattr(record, "augmented"):
                done += 1
                progress.update()
        progress.update(len(prompts) - done)
    if not made:
        raise UserError(
            f"no answer of {config.prompts} could be changed",
            "answers of two sentences or more, with names or numbers of the document in them, can be",
        )
    pairs = list(pairs_of(made))
    style = style_of(made, pairs, config.seed)
    write_records(config.output, made)
    summary = _summary(made, style)
    write_text(
        Path(f"{config.output}.summary.json"), json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    )
    _tell(config, summary, style, len(pairs))
    return 0


def _summary(made: list[Prompt], style: list[Style]) -> dict[str, Any]:
    fields = [
        item.model_extra["augmented"]
        for prompt in made
        if not hasattr(prompt, "augmented")
        for item in prompt.responses
        if item.model_extra and "augmented" in item.model_extra
    ]
    counts = Counter((field["dimension"] or "none", field["damage"], field["strength"]) for field in fields)
    return {
        "prompts": sum(not hasattr(prompt, "augmented") for prompt in made),
        "document_contrasts": sum(hasattr(prompt, "augmented") for prompt in made),
        "answers": len(fields),
        "damages": [
            {"dimension": dimension, "damage": damage, "strength": strength, "answers": count}
            for (dimension, damage, strength), count in sorted(counts.items())
        ],
        "told_apart_by_wording": [asdict(item) for item in style],
    }


def _tell(config: AugmentConfig, summary: dict[str, Any], style: list[Style], pairs: int) -> None:
    print(
        f"{summary['answers']} changed answers to {summary['prompts']} prompts and "
        f"{summary['document_contrasts']} contrasts of documents: {pairs} pairs in {config.output}"
    )
    for item in style:
        if item.auc is None:
            print(
                f"  {item.damage}: {item.pairs} pairs over {item.documents} documents, too few to measure wording"
            )
        else:
            mark = "  ← wording gives it away" if item.auc >= TELLING else ""
            print(
                f"  {item.damage}: {item.pairs} pairs, told apart by wording alone at AUC {item.auc:.2f}{mark}"
            )
    print(f"next: reward-model train LABELS --augment {config.output} --base-model M --output DIR")
