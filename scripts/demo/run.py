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
    "prompts": "questions about long documents",
    "sample": "answers to each question",
    "split": "one half for the judge, one for the reward model",
    "label": "the judge labels its half",
    "train": "a reward model learns from a judge's labels",
    "evaluate": "reward model against that judge on documents kept out of training",
    "score": "the reward model scores the rest, without the judge",
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
    """The reward model's scores and ``reward`` of answers outside its training."""
    score_usage: dict[str, Any] = field(default_factory=dict)
    taught: dict[Key, Label] = field(default_factory=dict)
    """The labels that the reward model learnt from and is measured on; by default those of this run's judge."""
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
        fidelity=read_json(folder / "fidelity" / "fidelity.json"),
        training=rows_of(folder / "reward_model" / "metrics.jsonl"),
        pairs=rows_of(folder / "pairs.jsonl"),
        dpo=rows_of(folder / "dpo" / "metrics.jsonl"),
    )
    run.taught = taught_by(folder / "reward_model") or run.labels
    # The evaluation's own scores are of labelled answers over documents that training kept out.
    for path in (folder / "fidelity" / "scored.jsonl", folder / "scored.jsonl"):
        for prompt in read_prompts(path) if path.is_file() else ():
            for response in prompt.responses:
                scores = {name: value for name, value in (response.scores or {}).items() if value is not None}
                if response.reward is not None:
                    scores["reward"] = response.reward
                if scores:
                    run.scored[prompt.id, response.id] = scores
    return run


def taught_by(model: Path) -> dict[Key, Label]:
    """The labels named by a trained model's run.yaml."""
    config = (read_run_yaml(model).get("config") or {}) if (model / "run.yaml").is_file() else {}
    labels = Path(str(config.get("labels") or ""))
    return labels_by_answer(labels) if config.get("labels") and labels.exists() else {}


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


def chosen_prompt(run: Run) -> Prompt | None:
    """The prompt to show: labelled before only scored, then the widest range of rewards."""

    def worth(prompt: Prompt) -> tuple[int, float]:
        keys = [(prompt.id, response.id) for response in prompt.responses]
        judged = [label.reward for key in keys if (label := run.labels.get(key)) and label.reward is not None]
        scored = [run.scored[key]["reward"] for key in keys if "reward" in run.scored.get(key, {})]
        values = judged or scored
        return len(judged), max(values) - min(values) if values else 0.0

    return max((prompt for prompt in run.prompts if prompt.responses), key=worth, default=None)
