"""The part of a quickstart's report that happened on this machine: new answers, a judge of two prompts, pairs, DPO.

In: a `Run`. Out: page sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from judge_pipeline.common.html.charts import histogram, line, table
from judge_pipeline.common.html.page import Section, caption, columns, details, join, notice, prose
from scripts.demo.run import Run

SMALL_JUDGE = (
    "The judge of these two prompts is SmolLM2 with 135 million parameters: it shows the machinery at work and says next to "
    "nothing about the answers. The reward model did not learn from it."
)
FEW_PAIRS = 30


def judged(run: Run) -> Section:
    """What this run's own judge labelled."""
    heading, anchor = "A judge at work", "judge"
    if not run.labels:
        return Section(heading, caption("The judge has not labelled anything here."), anchor)
    spent, done = run.judge_spent(), sum(label.status == "labelled" for label in run.labels.values())
    words = (
        f"{len(run.labels)} answers to {len({key[0] for key in run.labels})} prompts, {done} with all four scores, "
        f"{int(spent.get('calls', 0)):,} calls. Every call is stored: the same command again asks nothing twice."
    )
    parts: list[Markup | str] = [prose(words)]
    if run.small_judge:
        parts.insert(0, notice(SMALL_JUDGE, "warning"))
    if (run.folder / "labels" / "report.html").is_file():
        parts.append(Markup('<p><a href="labels/report.html">Every label with its evidence</a></p>'))
    return Section(heading, join(*parts), anchor)


def new_answers(run: Run) -> Section:
    """Answers that no judge saw, scored by the reward model, and the pairs made of them."""
    heading, anchor = "New answers, scored without a judge", "pairs"
    if not run.scored:
        return Section(heading, caption("The reward model has not scored anything here."), anchor)
    rewards = [row["reward"] for row in run.scored.values() if "reward" in row]
    parts: list[Markup | str] = [
        prose(f"{len(run.scored)} answers to {len({key[0] for key in run.scored})} prompts.")
    ]
    if len(set(rewards)) > 1:
        parts.append(histogram({"reward": rewards}, 12, "reward"))
    if run.pairs:
        gaps = [(row.get("chosen_reward") or 0) - (row.get("rejected_reward") or 0) for row in run.pairs]
        widest = run.pairs[gaps.index(max(gaps))]
        long = Markup('<span class="long">{}</span>')
        rows = [
            [side, widest.get(f"{side}_reward"), long.format(last_turn(widest.get(side)))]
            for side in ("chosen", "rejected")
        ]
        grid = table(["", "reward", "answer"], rows, sortable=False, align=["left", "right", "left"])
        parts.append(details(f"{len(run.pairs)} pairs, best against worst; the one furthest apart", grid))
    else:
        parts.append(caption("No pairs have been made here."))
    return Section(heading, join(*parts), anchor)


def last_turn(value: object) -> str:
    """The text of an answer, plain or as chat messages."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return str(value[-1].get("content", ""))
    return str(value or "")


def dpo(run: Run) -> Section:
    """DPO: what changed on held-out pairs, and the curves."""
    heading, anchor = "A few steps of DPO", "dpo"
    steps = [row for row in run.dpo if "step" in row]
    if not steps:
        return Section(heading, caption("DPO has no metrics here."), anchor)
    margins = {"rewards/margins": "training", "eval_rewards/margins": "held out"}
    plots = [
        curve(steps, {"loss": "training", "eval_loss": "held out"}, "loss"),
        curve(steps, margins, "margin"),
    ]
    parts: list[Markup | str] = [prose(held_out_words(steps)), columns(*filter(None, plots))]
    saved = max((row.get("tokens_saved") or 0 for row in steps), default=0)
    seen = max((row.get("num_tokens") or 0 for row in steps), default=0)
    if seen and saved:
        share = f"{saved / seen:.0%} of {seen:,.0f}"
        parts.append(prose(f"Reading each prompt once for both answers of a pair saved {share} tokens."))
    return Section(heading, join(*parts), anchor)


def held_out_words(steps: Sequence[dict[str, Any]]) -> str:
    """What a few steps did to pairs that were not trained on."""
    last = next((row for row in reversed(steps) if "eval_rewards/accuracies" in row), None)
    count = max(int(row["step"]) for row in steps)
    if last is None:
        return f"{count} steps. No pair was held out, so nothing is known about new ones."
    share, margin = last["eval_rewards/accuracies"], last["eval_rewards/margins"]
    moved = (
        f"the chosen answer gained on the rejected one in {share:.0%} of them (margin {margin:+.4f})"
        if share > 0.5
        else f"the chosen answer did not gain on the rejected one in more than half of them ({share:.0%}, margin {margin:+.4f})"
    )
    return (
        f"{count} steps. Before the first, model and reference are one and no answer is ahead; on the held-out pairs, after the "
        f"last, {moved}. They are far too few to say that the model has become better: they show that training moves what "
        "it should."
    )


def curve(rows: Sequence[dict[str, Any]], names: dict[str, str], y_label: str) -> Markup:
    """The named metrics against the step; empty where a series has fewer than two points."""
    found = {
        shown: [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        for name, shown in names.items()
    }
    series = {name: points for name, points in found.items() if len(points) > 1}
    return line(series, "step", y_label) if series else Markup("")
