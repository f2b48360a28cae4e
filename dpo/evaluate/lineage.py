"""Who judged the pairs a model was trained on, read from the run.yaml of each step; to warn when the same one decides.

A policy learns what its reward likes, mistakes included: that reward finds it better whether it is or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.evaluate.evaluate_config import EvaluateConfig
from judge_pipeline.common.run_dir import file_digest, read_run_yaml

MANIFEST = "reward_model.json"


def warnings_about(config: EvaluateConfig) -> list[str]:
    """A sentence for each side that was trained on the rewards of who decides; silent where runs are not recorded."""
    deciders = set(_deciders(config))
    found = []
    for name, answers in ((config.name_a, config.a), (config.name_b, config.b)):
        for one in sorted(deciders & set(_trained_on(answers))):
            found.append(
                f"{name} was trained on the rewards of {one}, which decides here: it may have learned what that likes, "
                "and not to answer better; let a judge that it was not trained on decide"
            )
    return found


def _run(path: Path) -> tuple[str, dict[str, Any]]:
    """(command, settings) of the run that made a file or a directory; nothing where none is recorded."""
    file = path / "run.yaml" if path.is_dir() else Path(f"{path}.run.yaml")
    run = read_run_yaml(file) if file.is_file() else {}
    return str(run.get("command", "")), dict(run.get("config") or {})


def _reward_model(folder: Path) -> str:
    """A reward model's name: by what its manifest holds, so that a copy of it is the same."""
    file = folder / MANIFEST
    digest = f" {file_digest(file)[:8]}" if file.is_file() else f" {folder}"
    return f"the reward model{digest}"


def _judge(run: dict[str, Any]) -> str:
    return f"the judge '{(run.get('judge') or {}).get('model')}'"


def _scored_by(path: Path) -> Iterator[str]:
    command, run = _run(path)
    if command == "reward-model score":
        yield _reward_model(Path(run["model"]))


def _labelled_by(path: Path | None) -> Iterator[str]:
    folder = path.parent if path is not None and path.is_file() else path
    command, run = _run(folder) if folder is not None else ("", {})
    if command == "judge-pipeline label":
        yield _judge(run)


def _deciders(config: EvaluateConfig) -> Iterator[str]:
    if config.pairwise:
        yield _judge({"judge": {"model": config.judge.model}})
    elif config.reward_model is not None:
        yield _reward_model(config.reward_model)
    elif config.labels_a is not None:
        yield from _labelled_by(config.labels_a)
        yield from _labelled_by(config.labels_b)
    else:
        yield from _scored_by(config.a)
        yield from _scored_by(config.b)


def _trained_on(answers: Path) -> Iterator[str]:
    """Whose rewards the model behind an answers file was trained on, and the models it was trained from."""
    command, run = _run(answers)
    if command == "reward-model score":
        yield from _trained_on(Path(run["prompts"]))
    elif command == "dpo sample":
        seen: set[Path] = set()
        model = Path(run["model"])
        while model.is_dir() and model not in seen:
            seen.add(model)
            command, trained = _run(model)
            if command != "dpo train":
                return
            command, paired = _run(Path(trained["pairs"]))
            if command == "dpo pairs":
                yield from _scored_by(Path(paired["scored"]))
                yield from _labelled_by(Path(paired["labels"]) if paired.get("labels") else None)
            model = Path(trained["model"])
