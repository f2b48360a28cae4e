"""What a quickstart run has left behind, read for its report.

In: the run directory. Out: `Run`, in which what is absent is empty: a report of an unfinished run is a report too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import labels_by_answer, read_json, read_prompts, read_rows
from judge_pipeline.common.records import DIMENSIONS, Label, Prompt
from judge_pipeline.common.run_dir import read_run_yaml

STAGES = {
    "teach": "your judge labels the documents that come with labels",
    "deal": "labelled answers to learn from, and two documents to show",
    "changed": "answers in which a fact is changed",
    "train": "a reward model learns from a judge's labels",
    "evaluate": "reward model against that judge, on documents the fit had not read",
    "explain": "answers over the two documents, sentence by sentence",
    "prompts": "questions about long documents",
    "sample": "answers to each question",
    "split": "two prompts for the judge",
    "label": "the judge labels these two",
    "score": "the reward model scores the new answers, without the judge",
    "pairs": "best answer against worst",
    "dpo": "a short DPO run",
}
Key = tuple[str, str]


@dataclass
class Run:
    """What a run directory holds; what is absent is empty."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    prompts: list[Prompt] = field(default_factory=list)
    labels: dict[Key, Label] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)
    """The judge's settings."""
    judge_summary: dict[str, Any] = field(default_factory=dict)
    scored: dict[Key, dict[str, float]] = field(default_factory=dict)
    """The reward model's scores and ``reward`` of the new answers."""
    folded: dict[Key, dict[str, float]] = field(default_factory=dict)
    """Its scores of labelled answers by fits that had not read their documents."""
    shown: list[Prompt] = field(default_factory=list)
    """Labelled prompts kept out of training, scored and explained."""
    shown_labels: dict[Key, Label] = field(default_factory=dict)
    shown_usage: dict[str, Any] = field(default_factory=dict)
    """What scoring those took."""
    recorded: bool = False
    """The labels came with this repository; otherwise a judge of the user's gave them."""
    model_name: str = "The model"
    score_usage: dict[str, Any] = field(default_factory=dict)
    taught: dict[Key, Label] = field(default_factory=dict)
    """The labels that the reward model learnt from and is measured on."""
    fidelity: dict[str, Any] = field(default_factory=dict)
    training: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    dpo: list[dict[str, Any]] = field(default_factory=list)

    @property
    def small_judge(self) -> bool:
        """The embedded model judged, in this process."""
        return not self.judge.get("base_url") and self.judge.get("model") in (None, "smollm2")

    def judge_spent(self) -> dict[str, float]:
        """Calls and tokens the judge took over all runs of the labelling."""
        block = self.judge_summary.get("store") or self.judge_summary
        calls, tokens = block.get("calls"), block.get("tokens") or {}
        made = calls.get("made") if isinstance(calls, dict) else calls
        found = {"calls": made, "read": tokens.get("input"), "written": tokens.get("output")}
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def load_run(folder: Path) -> Run:
    """Read what is there. Raises UserError when the directory is none, DataError when a file is broken."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory", "name the run directory of scripts/quickstart.sh")
    labels = folder / "labels"
    settings = read_run_yaml(labels) if (labels / "run.yaml").is_file() else {}
    answers = folder / "answers.jsonl"
    source = answers if answers.is_file() else folder / "prompts.jsonl"
    run = Run(
        folder,
        seconds=stage_seconds(folder),
        prompts=[*read_prompts(source)] if source.is_file() else [],
        labels=labels_by_answer(labels) if (labels / "labels.jsonl").is_file() else {},
        judge=(settings.get("config") or {}).get("judge") or {},
        judge_summary=read_json(labels / "summary.json"),
        score_usage=read_json(folder / "scored.jsonl.summary.json"),
        shown_usage=read_json(folder / "explained.jsonl.summary.json"),
        fidelity=read_json(folder / "fidelity" / "fidelity.json"),
        training=rows_of(folder / "reward_model" / "metrics.jsonl"),
        pairs=rows_of(folder / "pairs.jsonl"),
        dpo=rows_of(folder / "dpo" / "metrics.jsonl"),
    )
    dealt, shown = folder / "demo", folder / "explained.jsonl"
    run.taught = _labels_at(dealt / "learn_labels.jsonl")
    run.shown_labels = _labels_at(dealt / "shown_labels.jsonl")
    run.shown = [*read_prompts(shown)] if shown.is_file() else []
    run.recorded = not (folder / "labels_yours").is_dir()
    run.folded = scores_at(folder / "fidelity" / "scored.jsonl")
    run.scored = scores_at(folder / "scored.jsonl")
    model = folder / "reward_model" / "run.yaml"
    config = (read_run_yaml(model.parent).get("config") or {}) if model.is_file() else {}
    base = str(config.get("base_model") or "")
    run.model_name = {"": "The model", "smollm2": "SmolLM2 with 135 million parameters"}.get(base, base)
    return run


def _labels_at(path: Path) -> dict[Key, Label]:
    return labels_by_answer(path) if path.is_file() else {}


def scores_at(path: Path) -> dict[Key, dict[str, float]]:
    """Scores and ``reward`` of every answer of a file of scored prompts; empty where there is no file."""
    found: dict[Key, dict[str, float]] = {}
    for prompt in read_prompts(path) if path.is_file() else ():
        for response in prompt.responses:
            scores = {name: value for name, value in (response.scores or {}).items() if value is not None}
            if response.reward is not None:
                scores["reward"] = response.reward
            if scores:
                found[prompt.id, response.id] = scores
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, or none where there is no file."""
    return [row for _, row in read_rows(path)] if path.is_file() else []


def stage_seconds(folder: Path) -> dict[str, float]:
    """Seconds a stage took, from the second line of each stamp in ``.stages/``; stages in order."""
    found: dict[str, float] = {}
    for name in STAGES:
        stamp = folder / ".stages" / name
        lines = stamp.read_text(encoding="utf-8").split("\n") if stamp.is_file() else []
        if len(lines) > 1 and lines[1].strip().isdigit():
            found[name] = float(lines[1])
    return found


def dimension_names(run: Run) -> list[str]:
    """The four of the paper, and whatever else was scored."""
    judged = (name for label in run.labels.values() for name in label.scores)
    scored = (name for row in run.scored.values() for name in row if name != "reward")
    return [*dict.fromkeys([*DIMENSIONS, *judged, *scored])]
