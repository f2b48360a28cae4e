"""The overview of a label run: figures, score distributions, ties, failures, what was spent, how it was run.

In: labels and the run's ``summary.json`` and ``run.yaml`` (either may lack anything). Out: page sections. Where a
file does not say a figure, the page says that it is not known; nothing is invented.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from judge_pipeline.common.formatting import format_percent, format_seconds, format_value
from judge_pipeline.common.html.charts import histogram, stat_tiles, table
from judge_pipeline.common.html.page import Section, code_block, details, join, notice, prose
from judge_pipeline.report.data import PENDING, Labels

NOT_ADDED = frozenset({"calls taken from the call store", "calls saved by sharing", "attempts that failed"})
"""What an answer did not cost."""
SCORE_EDGES = [index / 2 - 0.25 for index in range(22)]
"""Bins of half a point, centred on 0, 0.5, … 10, so that a printed score falls into the middle of one."""


def overview(labels: Labels, summary: dict[str, Any], answers: int, prompts: int) -> Section:
    """The figures a reader wants first."""
    states = Counter(label.status for label in labels.all())
    waiting = answers - sum(states.values())
    rewards = labels.values("reward")
    labelled = format_percent(states["labelled"] / answers) if answers else None
    mean = f"{np.mean(rewards):.2f}" if rewards else None
    tiles: list[tuple[str, object, str]] = [
        ("Answers", answers, f"to {prompts:,} prompts"),
        ("Labelled", labelled, f"{states['partial']:,} in part, {states['failed']:,} failed"),
        ("Mean reward", mean, f"of {len(rewards):,} answers, 0–10" if rewards else "no answer has a reward"),
        *_spent_tiles(summary),
    ]
    parts: list[Markup] = [stat_tiles(tiles)]
    if waiting > 0:
        text = f"{waiting:,} answers have no label yet: the run is not finished. Run it again and it goes on."
        parts.append(notice(text, "warning"))
    if states[PENDING]:
        text = f"{states[PENDING]:,} answers wait for the answers to batch files; run the command again with them."
        parts.append(notice(text))
    if labels.torn:
        text = "The last row of labels.jsonl is torn and left out here; the run that is resumed mends it."
        parts.append(notice(text))
    if summary.get("stopped"):
        text = f"The run was stopped: {summary['stopped']}. Run it again once that is no longer so, and it goes on."
        parts.append(notice(text, "warning"))
    return Section("At a glance", join(*parts), "glance")


def scores(labels: Labels) -> Section:
    """Distributions and ties of each dimension and of the reward."""
    dimensions = labels.dimensions
    panels = histogram({name: labels.values(name) for name in dimensions}, SCORE_EDGES, "score")
    rows = []
    for name in [*dimensions, "reward"]:
        values = labels.values(name)
        mean = float(np.mean(values)) if values else None
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        distinct, tied = len({round(value, 6) for value in values}), labels.tied_share(name)
        share = None if tied is None else format_percent(tied)
        rows.append([name, len(values), labels.count - len(values), mean, std, distinct, share])
    head = ["dimension", "scored", "missing", "mean", "std", "distinct values", "tied pairs"]
    sides = ["left", *["right"] * 6]
    tied_pairs = "Tied pairs: the share of pairs of answers to the same prompt that the judge scored alike."
    numbers = table(head, rows, align=sides, caption=tied_pairs)
    intro = "Points from 0 to 10, 10 best. The dashed line is the mean."
    return Section("Scores", join(panels, numbers), "scores", intro)


def failures(labels: Labels) -> Section:
    """Why scores are missing, by dimension and typed reason."""
    found = labels.failures()
    if not found:
        return Section("Failures", prose("No dimension of any answer failed."), "failures")
    rows = [
        [dimension, reason, count]
        for dimension, reasons in found.items()
        for reason, count in reasons.most_common()
    ]
    intro = (
        "A failed dimension is a typed reason, never a zero; the other dimensions keep their scores. "
        "Run again with --retry-failed to ask only for these."
    )
    return Section("Failures", table(["dimension", "reason", "answers"], rows), "failures", intro)


def spent(labels: Labels, summary: dict[str, Any]) -> Section:
    """Calls, tokens and money: of the last run, and of all runs that ever worked on this directory."""
    labelled = labels.count
    last, ever = _costs(summary), _costs(_mapping(summary.get("store")))
    if not last and not ever:
        last = _usage(labels)
    runs = {"last run": last, **({"all runs": ever} if ever else {})}
    rows: list[list[object]] = []
    for name, total in {**last, **ever}.items():
        share = total / labelled if labelled and name not in NOT_ADDED else None
        rows.append([name, *(run.get(name) for run in runs.values()), share])
    sides = ["left", *["right"] * (len(runs) + 1)]
    grid = table(["", *runs, "per answer"], rows, sortable=False, align=sides)
    priced = "cost" in {**last, **ever}
    note = "" if priced else "No prices were given, so the cost in money is not known."
    return Section("Spent", grid, "spent", note)


def _costs(block: dict[str, Any]) -> dict[str, float]:
    """Names of costs for people → amounts, of `summary.json` or of its `store` part; absent ones left out."""
    calls, tokens, cost = block.get("calls"), _mapping(block.get("tokens")), _mapping(block.get("cost"))
    made = calls if isinstance(calls, int) else _mapping(calls).get("made")
    found = {
        "calls made": made,
        "calls taken from the call store": _mapping(calls).get("from_store"),
        "calls saved by sharing": _mapping(calls).get("shared"),
        "attempts that failed": block.get("failed_attempts"),
        "input tokens": tokens.get("input"),
        "of these, read from the engine's cache": tokens.get("cached_input"),
        "output tokens": tokens.get("output"),
        "cost": cost.get("total", cost.get("amount")),
    }
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _usage(labels: Labels) -> dict[str, float]:
    """The same from the labels' own figures, where no summary is there."""
    names = {
        "calls made": "calls",
        "input tokens": "input_tokens",
        "of these, read from the engine's cache": "cached_input_tokens",
        "output tokens": "output_tokens",
    }
    return {name: round(sum(getattr(x.usage, field) for x in labels.all())) for name, field in names.items()}


def settings(run: dict[str, Any]) -> Section:
    """The run's own description."""
    if not run:
        return Section("How it was run", prose("There is no run.yaml beside the labels."), "run")
    judge = _mapping(_mapping(run.get("config")).get("judge"))
    endpoints = judge.get("base_url") or []
    named = endpoints if isinstance(endpoints, str) else ", ".join(map(str, endpoints))
    facts: list[tuple[str, Any]] = [
        ("command", run.get("command")),
        ("judge", judge.get("model")),
        ("endpoint", named or "none: a model in the process"),
        ("started", run.get("started")),
        ("code", run.get("git_revision")),
    ]
    text = yaml.safe_dump(run, sort_keys=False, allow_unicode=True)
    known = [[name, format_value(value)] for name, value in facts if value]
    grid = table(["", ""], known, sortable=False)
    return Section("How it was run", join(grid, details("All of run.yaml", code_block(text))), "run")


def _spent_tiles(summary: dict[str, Any]) -> list[tuple[str, object, str]]:
    last, ever = _costs(summary), _costs(_mapping(summary.get("store")))
    all_runs = {**last, **ever}
    tiles: list[tuple[str, object, str]] = []
    if "calls made" in all_runs:
        note = f"{last['calls made']:,} in the last run" if ever and "calls made" in last else ""
        tiles.append(("Judge calls", all_runs["calls made"], note))
    if "input tokens" in all_runs:
        written = _thousands(all_runs.get("output tokens"))
        tiles.append(("Tokens", _thousands(all_runs["input tokens"]), f"read; {written} written"))
    if "cost" in all_runs:
        currency = str(_mapping(summary.get("cost")).get("currency") or "")
        tiles.append(("Cost", f"{all_runs['cost']:,.2f}", currency))
    if summary.get("seconds") is not None:
        tiles.append(("Time", format_seconds(summary["seconds"]), "of the last run" if ever else ""))
    return tiles


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _thousands(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.0f}"
