"""A learning curve in figures, words and pages: what each size reached, what twice as many labels would bring and cost.

In: the measured sizes. Out: the plain data of `curve.json`, the terminal's text and `report.html`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from judge_pipeline.common.html.charts import line, table
from judge_pipeline.common.html.page import Section, join, prose, render_page
from judge_pipeline.statistics import render as render
from judge_pipeline.statistics.compare import PREFERENCES
from judge_pipeline.statistics.table import OVERALL, REWARD
from reward_model.fidelity.fidelity import summary_figures


def summarise(steps: Sequence[dict[str, Any]], cost: dict[str, float]) -> dict[str, Any]:
    """The curve as plain data: every size's figures as means over its seeds, the main figure, the forecast.

    Args:
        steps: `size`, `seed`, `steps` and `fidelity` of every model, sizes ascending.
        cost: what the judge spent per prompt.
    """
    points = []
    name = ""
    for size in dict.fromkeys(step["size"] for step in steps):
        own = [step for step in steps if step["size"] == size]
        each = [summary_figures(step["fidelity"]) for step in own]
        figures = {
            target: {metric: _mean([one[target][metric] for one in each]) for metric in found}
            for target, found in each[0].items()
        }
        name, main = main_figure(figures)
        seeds = [
            {"seed": step["seed"], "steps": step["steps"], "main": main_figure(one)[1]}
            for step, one in zip(own, each, strict=True)
        ]
        points.append({"size": size, "figures": figures, "main": main, "seeds": seeds})
    known = [(item["size"], item["main"]["value"]) for item in points if item["main"]["value"] is not None]
    last = steps[-1]["fidelity"]
    return {
        "main_figure": name,
        "points": points,
        "forecast": forecast(known),
        "judge_cost_per_prompt": cost,
        "held_out": {"prompts": last["prompts"], "documents": last["documents"]},
    }


def _mean(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A figure over seeds: mean of the values and of the bounds over documents, and the range of the values."""
    found: dict[str, Any] = {"count": figures[0]["count"]}
    for name in ("value", "low", "high"):
        known = [figure[name] for figure in figures if figure[name] is not None]
        found[name] = float(np.mean(known)) if len(known) == len(figures) else None
    values = [figure["value"] for figure in figures if figure["value"] is not None]
    return {**found, "range": [min(values), max(values)] if values else None}


def curve_rows(curve: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A row a size: every target's within-prompt figure, its range over seeds, and the steps that were taken."""
    targets = list(curve["points"][0]["figures"])
    rows = []
    for point in curve["points"]:
        figures = [point["figures"].get(name, {}) for name in targets]
        cells = [_with_range(figure.get("spearman") or figure.get("pairs")) for figure in figures]
        steps = sorted({seed["steps"] for seed in point["seeds"]})
        taken = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"
        rows.append([str(point["size"]), taken, *cells])
    return ["prompts", "steps", *targets], rows


def _with_range(figure: dict[str, Any] | None) -> str:
    """`0.41 ±0.02`: mean, and half the range over seeds."""
    if not figure or figure["value"] is None:
        return "–"
    low, high = figure["range"]
    return f"{figure['value']:.2f} ±{(high - low) / 2:.2f}"


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
    heads, rows = curve_rows(curve)
    return f"{render.aligned(heads, rows)}\n{_legend(curve)}\n\n{textwrap.fill(advice(curve), render.WIDTH)}"


def _legend(curve: dict[str, Any]) -> str:
    last = curve["points"][-1]
    return (
        f"means over {len(last['seeds'])} seeds ± half their range; {curve['main_figure']} at {last['size']} prompts "
        f"over documents: {render.interval(last['main'], 2)}"
    )


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
        prose(_legend(curve)),
        prose(advice(curve)),
    )
    held = curve["held_out"]
    intro = f"Measured on {held['prompts']} prompts over {held['documents']} documents that no size was trained on."
    return render_page(
        "Learning curve", "reward-model learning-curve", [Section("Fidelity", body, "curve", intro)]
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
