"""`reward-model learning-curve`: fidelity against the number of labelled prompts, to know when to stop paying the judge.

In: labels and a base model. Out: a model trained at each size on nested sets of prompts, every one measured on the same
held-out documents; `curve.json`, `report.html`, a table, and what twice as many labels would bring and cost. A size
that is finished is not trained again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.html.charts import line, table
from judge_pipeline.common.html.page import Section, encode_page, join, prose, render_page
from judge_pipeline.common.record_files import write_records, write_text
from judge_pipeline.common.run_dir import prepare_run_dir
from judge_pipeline.statistics import render as render
from judge_pipeline.statistics.baselines import all_baselines
from judge_pipeline.statistics.compare import PREFERENCES
from judge_pipeline.statistics.table import OVERALL, REWARD
from reward_model.data.examples import load_examples, usable
from reward_model.data.splits import hash_fraction, split_by_document
from reward_model.fidelity.fidelity import evaluate_scores, summary_figures
from reward_model.fidelity.inputs import Reference, fit_window, model_columns, read_reference
from reward_model.fidelity.learning_curve_config import LearningCurveConfig
from reward_model.modeling.model import MANIFEST
from reward_model.scoring.scorer import RewardModel
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig


def nested_subsets(prompt_ids: Sequence[str], sizes: Sequence[int], seed: int) -> dict[int, list[str]]:
    """For each size the first prompts of one fixed order, so that a larger set holds every smaller one."""
    order = sorted(prompt_ids, key=lambda name: hash_fraction(name, seed))
    return {size: order[:size] for size in sizes if size <= len(order)}


def write_subset(reference: Reference, ids: Sequence[str], folder: Path) -> tuple[Path, Path | None]:
    """(labels or prompts to train on, the prompts behind labels) of a subset, as files in `folder`."""
    wanted = set(ids)
    prompts = folder / "prompts.jsonl"
    write_records(prompts, (prompt for prompt in reference.prompts if prompt.id in wanted))
    if not reference.labels:
        return prompts, None
    labels = folder / "labels.jsonl"
    write_records(labels, (label for key, label in reference.labels.items() if key[0] in wanted))
    return labels, prompts


def train_size(config: LearningCurveConfig, reference: Reference, ids: Sequence[str], folder: Path) -> Path:
    """Train on a subset; returns the model's directory, trained now or by an earlier run."""
    labels, prompts = write_subset(reference, ids, folder)
    inherited = set(LearningCurveConfig.model_fields) & set(TrainConfig.model_fields)
    settings = TrainConfig.model_validate(
        {
            **{name: getattr(config, name) for name in inherited},
            "labels": labels,
            "prompts": prompts,
            "output": folder / "model",
            "existing": "resume",
            "eval_fraction": 0.0,  # the held-out documents are in no subset
            "allow_constant": True,  # a small subset may hold one score only; a larger one tells
        }
    )
    if not (settings.output / MANIFEST).is_file():
        train(settings)
    return settings.output


def measure(
    config: LearningCurveConfig, reference: Reference, held_out: Sequence[str], model_dir: Path
) -> dict[str, Any]:
    """Fidelity of one model on the held-out prompts, as `evaluate_scores` gives it."""
    model = RewardModel.from_pretrained(model_dir, shared_prefix=config.shared_prefix)
    held = Reference(list(reference.prompts), reference.groups, reference.labels, reference.files)
    held.keep(held_out)
    fit_window(held, model, config.overflow)
    answers = held.table(lambda prompt: len(model.render(prompt.context, prompt.query)), "tokens")
    predicted = model_columns(model, answers, config.token_budget or 16384)
    return evaluate_scores(
        answers,
        held.targets(answers),
        predicted,
        preferences=[] if reference.labels else answers.preferences(),
        baselines=all_baselines(answers, None, config.seed),
        replicates=config.bootstrap,
        seed=config.seed,
        notes=held.notes,
    )


def main_figure(figures: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The one figure to decide by: Spearman of the reward, else of people's whole judgement, else preferences."""
    for target in (REWARD, OVERALL):
        if target in figures:
            return f"{target}, Spearman within prompts", figures[target]["spearman"]
    if PREFERENCES in figures:
        return "people's choices, share of pairs", figures[PREFERENCES]["pairs"]
    target = next(iter(figures))
    return f"{target}, Spearman within prompts", figures[target]["spearman"]


def forecast(points: Sequence[tuple[int, float]]) -> dict[str, float] | None:
    """Gain of the main figure per doubling of the labels, a line through figure against log2(size); None with one."""
    if len(points) < 2:
        return None
    sizes, values = np.log2([size for size, _ in points]), np.array([value for _, value in points])
    slope, intercept = np.polyfit(sizes, values, 1)
    rest = values - (slope * sizes + intercept)
    return {
        "gain_per_doubling": float(slope),
        "scatter": float(rest.std()),
        "next_size": float(2 * points[-1][0]),
        "expected_there": float(slope * (sizes[-1] + 1) + intercept),
    }


def label_cost(reference: Reference) -> dict[str, float]:
    """What the judge spent per prompt, from the labels' usage; empty for people's judgements."""
    used = [label.usage for label in reference.labels.values()]
    prompts = len({key[0] for key in reference.labels})
    if not prompts:
        return {}
    return {
        "calls": sum(usage.calls for usage in used) / prompts,
        "input_tokens": sum(usage.input_tokens for usage in used) / prompts,
        "output_tokens": sum(usage.output_tokens for usage in used) / prompts,
    }


def run(config: LearningCurveConfig) -> int:
    """Train and measure every size."""
    reference = read_reference(config.labels, [config.prompts] if config.prompts else [])
    prepare_run_dir(config.output, config, "reward-model learning-curve", config.existing, reference.files)
    found = load_examples(config.labels, prompts=config.prompts, targets=config.targets)
    train_items, held_out = split_by_document(list(usable(found.items)), config.eval_fraction, config.seed)
    if not held_out:
        raise UserError(
            "all prompts share one document, so none can be held out", "label prompts over several documents"
        )
    subsets = nested_subsets([item.prompt_id for item in train_items], config.sizes, config.seed)
    if not subsets:
        raise UserError(
            f"there are {len(train_items)} training prompts, fewer than the smallest size {config.sizes[0]}",
            "give smaller --sizes",
        )
    left_out = [size for size in config.sizes if size not in subsets]
    if left_out:
        print(f"note: only {len(train_items)} prompts to train on; sizes {left_out} are left out")
    steps = [_step(config, reference, ids, [item.prompt_id for item in held_out]) for ids in subsets.values()]
    curve = summarise(steps, label_cost(reference))
    write_text(config.output / "curve.json", json.dumps(curve, indent=1, ensure_ascii=False))
    write_text(config.output / "report.html", encode_page(curve_page(curve)).decode())
    print(terminal_curve(curve))
    print(f"\nwritten: {config.output / 'curve.json'} and report.html")
    return 0


def _step(
    config: LearningCurveConfig, reference: Reference, ids: Sequence[str], held_out: Sequence[str]
) -> dict[str, Any]:
    folder = config.output / f"size-{len(ids):05d}"
    done = folder / "fidelity.json"
    if not done.is_file():
        print(f"training on {len(ids)} prompts", flush=True)
        model_dir = train_size(config, reference, ids, folder)
        found = measure(config, reference, held_out, model_dir)
        write_text(done, json.dumps(found, indent=1, ensure_ascii=False))
        if not config.keep_models:
            shutil.rmtree(model_dir)
    return {"size": len(ids), "fidelity": json.loads(done.read_text(encoding="utf-8"))}


def summarise(steps: Sequence[dict[str, Any]], cost: dict[str, float]) -> dict[str, Any]:
    """The curve as plain data: every size's figures, the main figure, the forecast."""
    points = []
    for step in steps:
        figures = summary_figures(step["fidelity"])
        name, main = main_figure(figures)
        points.append({"size": step["size"], "figures": figures, "main": main})
    known = [(item["size"], item["main"]["value"]) for item in points if item["main"]["value"] is not None]
    last = steps[-1]["fidelity"]
    return {
        "main_figure": name,
        "points": points,
        "forecast": forecast(known),
        "judge_cost_per_prompt": cost,
        "held_out": {"prompts": last["prompts"], "documents": last["documents"]},
    }


def curve_rows(curve: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A row a size: the main figure, then every target's within-prompt figure."""
    targets = list(curve["points"][0]["figures"])
    rows = []
    for point in curve["points"]:
        figures = [point["figures"].get(name, {}) for name in targets]
        cells = [render.interval(figure.get("spearman") or figure.get("pairs")) for figure in figures]
        rows.append([str(point["size"]), *cells])
    return ["labelled prompts", *targets], rows


def advice(curve: dict[str, Any]) -> str:
    """What twice as many labels would bring and cost, in words."""
    found = curve["forecast"]
    if found is None:
        return "One size gives no slope: add --sizes."
    main = curve["points"][-1]["main"]
    text = (
        f"A doubling of the labels has brought {found['gain_per_doubling']:+.3f} ({curve['main_figure']}; "
        f"scatter around that line {found['scatter']:.3f}). {found['next_size']:.0f} prompts may reach about "
        f"{found['expected_there']:.3f}."
    )
    if main["low"] is not None:
        half = (main["high"] - main["low"]) / 2
        if abs(found["gain_per_doubling"]) < half:
            text += f" That gain is smaller than the uncertainty of the figure itself (±{half:.3f})."
    cost = curve["judge_cost_per_prompt"]
    if cost.get("calls"):
        more = found["next_size"] - curve["points"][-1]["size"]
        text += (
            f" It would cost about {more * cost['calls']:,.0f} more judge calls and "
            f"{more * cost['input_tokens']:,.0f} input tokens."
        )
    return text


def terminal_curve(curve: dict[str, Any]) -> str:
    """The table and the advice."""
    return f"{render.aligned(*curve_rows(curve))}\n\n{advice(curve)}"


def curve_page(curve: dict[str, Any]) -> str:
    """The self-contained report."""
    series: dict[str, list[tuple[float, float]]] = {}
    for point in curve["points"]:
        for name, figures in point["figures"].items():
            figure = figures.get("spearman") or figures.get("pairs") or {}
            if figure.get("value") is not None:
                series.setdefault(name, []).append((float(np.log2(point["size"])), figure["value"]))
    heads, rows = curve_rows(curve)
    body = join(
        line(series, "labelled prompts, log2", "within-prompt figure"),
        table(heads, rows, sortable=False),
        prose(advice(curve)),
    )
    held = curve["held_out"]
    intro = f"Measured on {held['prompts']} prompts over {held['documents']} documents that no size was trained on."
    return render_page(
        "Learning curve", "reward-model learning-curve", [Section("Fidelity", body, "curve", intro)]
    )
