"""Markdown of `distil.json`, and the list of aims with what was reached: computed from the figures, never typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from judge_pipeline.common.records import DIMENSIONS
from judge_pipeline.statistics.compare import PREFERENCES
from judge_pipeline.statistics.render import interval, markdown
from judge_pipeline.statistics.table import REWARD
from reward_model.fidelity.free_baselines import STACK
from scripts.bench.distil_fit import CONTROLS, HALF, NARROW, PLAIN, PROBE

Result = dict[str, Any]
TARGETS = (*DIMENSIONS, REWARD)
GROUNDED = ("faithfulness", "completeness")
NEAR_TARGETS, NEAR_JUDGE = 0.1, 0.03
ADDED = "the same fidelity from half the prompts with evidence and augmentation"
"""Not measured: this script trains with neither yet."""
STACKED, JUDGE = f"probe + {STACK}", "the judge itself"


def aims(models: Mapping[str, Mapping[str, Result]]) -> list[dict[str, Any]]:
    """Every aim on the natural answers (`qa`) of every base model: what it says, the figure, whether it is reached."""
    found = []
    for model, sets in models.items():
        if "qa" in sets:
            found += [{"model": model, **one} for one in _aims_of(sets["qa"])]
    return found


def _aims_of(qa: Result) -> list[dict[str, Any]]:
    targets = qa["targets"]
    found = []
    for name in DIMENSIONS:
        own = targets[name]
        best = own["best_free_baseline"]
        for scorer, key in ((PROBE, "probe_minus"), (STACKED, "stacked_minus")):
            aim = f"{name}: {scorer} above the best free baseline"
            found.append(_above(aim, own[key][best]))
    for name in GROUNDED:
        for control in CONTROLS.values():
            if control in targets[name]["probe_minus"]:
                difference = targets[name]["probe_minus"][control]
                found.append(_above(f"{name}: above its own control, {control}", difference))
    together = qa["together"][PROBE]
    excess = together["outputs"] - together["targets"]
    found.append(
        {
            "aim": f"correlation between outputs within {NEAR_TARGETS} of the targets'",
            "figure": {"value": excess, "low": None, "high": None},
            "reached": abs(excess) <= NEAR_TARGETS,
        }
    )
    for scorer, key in ((PROBE, "probe_minus"), (STACKED, "stacked_minus")):
        figure = qa[PREFERENCES][key][JUDGE]
        aim = f"{scorer}: people's choices within {NEAR_JUDGE:.0%} of the judge's own agreement"
        found.append({"aim": aim, "figure": figure, "reached": figure["value"] >= -NEAR_JUDGE})
    for name in DIMENSIONS:
        figure = targets[name]["probe_minus"].get(HALF)
        if figure:
            aim = f"{name}: half the prompts, nothing added, no worse (the paired interval holds 0)"
            found.append({"aim": aim, "figure": figure, "reached": figure["low"] <= 0})
    found.append({"aim": ADDED, "figure": None, "reached": None})
    return found


REACHED = {True: "reached", False: "**not reached**", None: "not measured"}


def _above(aim: str, difference: Mapping[str, Any]) -> dict[str, Any]:
    reached = difference["low"] is not None and difference["low"] > 0
    return {"aim": aim, "figure": dict(difference), "reached": reached}


def _signed(figure: Mapping[str, Any] | None) -> str:
    return interval(dict(figure), 2, "+") if figure else "–"


def _against(figure: Mapping[str, Any] | None) -> str:
    return f" ({figure['against']})" if figure and "against" in figure else ""


def aims_table(found: Sequence[Mapping[str, Any]]) -> str:
    """A row an aim."""
    rows = [
        [
            one["model"],
            one["aim"],
            _signed(one["figure"]) + _against(one["figure"]),
            REACHED[one["reached"]],
        ]
        for one in found
    ]
    return markdown(["base model", "aim", "difference", ""], rows)


def scorer_table(found: Result) -> str:
    """Within-prompt Spearman / pairs of every scorer, a column a target."""
    shown = [name for name in TARGETS if name in found["targets"]]
    preferences = found.get(PREFERENCES, {}).get("rows", {})
    names = dict.fromkeys([*found["targets"][REWARD]["rows"], *preferences])
    rows = []
    for name in names:
        cells = [_two(found["targets"][target]["rows"].get(name)) for target in shown]
        people = preferences.get(name)
        rows.append([name, *cells, _percent(people)])
    return markdown(["Spearman / pairs", *shown, "people's choices"], rows)


def _two(row: Mapping[str, Any] | None) -> str:
    return f"{row['spearman']['value']:.2f} / {row['pairs']['value']:.2f}" if row else ""


def _percent(row: Mapping[str, Any] | None) -> str:
    return f"{100 * row['pairs']['value']:.1f}%" if row else ""


def difference_table(found: Result) -> str:
    """Paired differences of Spearman over documents: the probe minus each of what it is held against."""
    rows = []
    for target in TARGETS:
        own = found["targets"][target]
        minus, best = own["probe_minus"], own["best_free_baseline"]
        rows.append(
            [
                target,
                f"{_signed(minus[best])} ({best})",
                _signed(minus[STACK]),
                *(_signed(minus.get(name)) for name in (*CONTROLS.values(), PLAIN)),
                _signed(own["stacked_minus"][STACK]),
            ]
        )
    heads = [
        "probe minus",
        "best free baseline",
        STACK,
        *CONTROLS.values(),
        PLAIN,
        "stack with the probe minus stack",
    ]
    return markdown(heads, rows)


def ablation_table(found: Result) -> str:
    """Narrower readouts and fewer prompts: Spearman, and the probe's paired lead."""
    names = [name for name in found["targets"][REWARD]["rows"] if name in NARROW or "prompts" in name]
    rows = [
        [name]
        + [
            f"{found['targets'][target]['rows'][name]['spearman']['value']:.2f}"
            + (
                f" ({_signed(found['targets'][target]['probe_minus'][name])})"
                if name in found["targets"][target]["probe_minus"]
                else ""
            )
            for target in TARGETS
        ]
        for name in names
    ]
    full = [f"{found['targets'][target]['rows'][PROBE]['spearman']['value']:.2f}" for target in TARGETS]
    return markdown(["Spearman (probe minus it)", *TARGETS], [["**the probe**", *full], *rows])


def together_table(found: Result) -> str:
    """Correlation between outputs beside that between targets."""
    together = found["together"]
    pairs = together[PROBE]["pairs"]
    rows = [
        [" · ".join(pair["outputs"]), f"{pair['target']:.2f}"]
        + [f"{one['pairs'][place]['output']:.2f}" for one in together.values()]
        for place, pair in enumerate(pairs)
    ]
    means = [f"{one['outputs']:.2f}" for one in together.values()]
    rows.append(["mean", f"{together[PROBE]['targets']:.2f}", *means])
    return markdown(["outputs", "targets", *together], rows)


def cost_table(found: Result) -> str:
    """What one answer costs."""
    judge, model = found["cost"]["judge"], found["cost"]["model"]
    rows = [
        [
            "judge",
            f"{judge['calls']:.1f} calls",
            f"{judge['input_tokens']:,.0f} in, {judge['output_tokens']:,.0f} out",
            "",
            "",
        ],
        [
            "model",
            f"cut at layer {model['layer']} of {model['layers']}",
            f"{model['tokens'] + model['tokens_behind_the_bare_question']:,.0f} read"
            f" ({model['tokens_one_by_one']:,.0f} one by one, without the bare question)",
            f"{model['cpu_seconds_all_layers']} s on one core with all layers",
            f"{model['gigaflops']:.0f} GFLOP ({model['gigaflops_all_layers']:.0f} with all layers)",
        ],
    ]
    return markdown(["an answer", "", "tokens", "time", "operations"], rows)


def tables(result: Mapping[str, Any]) -> str:
    """Everything as Markdown."""
    parts = []
    for model, sets in result["models"].items():
        for name, found in sets.items():
            parts.append(
                f"### {name}, {model}: {found['prompts']} prompts, {found['answers']} answers, {found['documents']} documents"
            )
            parts += [scorer_table(found), difference_table(found), together_table(found), cost_table(found)]
            if HALF in found["targets"][REWARD]["rows"]:
                parts.append(ablation_table(found))
            minus = found.get(PREFERENCES, {}).get("probe_minus", {})
            if minus:
                rows = [[name, _signed(figure)] for name, figure in minus.items()]
                parts.append(markdown(["people's choices, the probe's reward minus", "share of pairs"], rows))
    return "\n\n".join([*parts, aims_table(result.get("aims", []))])
