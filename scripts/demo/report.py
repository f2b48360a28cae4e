"""One page for a whole quickstart run: what each stage did and took, what came out, and how far to trust it.

In: a run directory with the stages' outputs (`run.load_run` names the files). Out: ``RUN_DIR/report.html``, one
self-contained file, and a short table in the terminal. A stage that has not run is named as absent; nothing is made
up for it.

    python -m scripts.demo.report RUN_DIR
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.stats import spearmanr

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.formatting import format_seconds
from judge_pipeline.common.html.charts import bars, histogram, line, scatter, stat_tiles, table
from judge_pipeline.common.html.page import (
    Section,
    caption,
    code_block,
    columns,
    details,
    join,
    notice,
    prose,
    render_page,
)
from judge_pipeline.common.record_files import write_text
from judge_pipeline.report.sections import SCORE_EDGES
from judge_pipeline.report.write import TEMPLATES as REPORT_TEMPLATES
from judge_pipeline.statistics.render import target_section
from scripts.demo.cases import TEMPLATES, example, pairs, statements
from scripts.demo.run import STAGES, Run, dimension_names, load_run

SMALL_JUDGE = (
    "The judge of this run is SmolLM2 with 135 million parameters. That is a smoke test of the machinery, not a good "
    "judge: every part is real and works, but the scores below say next to nothing about the answers. For labels worth "
    "learning from, name a real judge: scripts/quickstart.sh --judge-url URL --judge-model NAME."
)


def glance(run: Run) -> Section:
    """The figures first, and the plain word about the judge."""
    answers = sum(len(prompt.responses) for prompt in run.prompts)
    done = sum(label.status == "labelled" for label in run.labels.values())
    spent = run.judge_spent()
    tiles: list[tuple[str, object, str]] = [
        ("Prompts", len(run.prompts) or None, f"{answers:,} answers"),
        (
            "Labelled by the judge",
            len(run.labels) or None,
            f"{done:,} with all scores" if run.labels else "not run",
        ),
        ("Scored without it", len(run.scored) or None, "" if run.scored else "not run"),
        ("Pairs for DPO", len(run.pairs) or None, "" if run.pairs else "not run"),
        ("Judge calls", int(spent["calls"]) if "calls" in spent else None, ""),
        ("All stages", format_seconds(sum(run.seconds.values())) if run.seconds else None, ""),
    ]
    parts = [stat_tiles(tiles)]
    if run.small_judge:
        parts.insert(0, notice(SMALL_JUDGE, "warning"))
    return Section("At a glance", join(*parts), "glance")


def stages(run: Run) -> Section:
    """What each stage did and how long it took."""
    if not run.seconds:
        return Section("Stages", caption("No stage has left its time here."), "stages")
    rows = [[name, STAGES.get(name, ""), format_seconds(seconds)] for name, seconds in run.seconds.items()]
    grid = table(["stage", "what it does", "time"], rows, sortable=False, align=["left", "left", "right"])
    return Section("Stages", columns(grid, bars(run.seconds, "seconds")), "stages")


def distributions(run: Run) -> Section:
    """The judge's scores and the reward model's, on the same bins."""
    names = dimension_names(run)
    judged: list[Mapping[str, float | None]] = [label.scores for label in run.labels.values()]
    titles: dict[str, Sequence[Mapping[str, float | None]]] = {
        "The judge": judged,
        "The reward model, on answers it was not trained on": [*run.scored.values()],
    }
    absent = ("The judge has not labelled anything here.", "The reward model has not scored anything here.")
    parts = []
    for (title, rows), text in zip(titles.items(), absent, strict=True):
        values = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
        plot = (
            histogram(values, SCORE_EDGES, "score", percent=True) if any(values.values()) else caption(text)
        )
        parts.append(Markup("<h3>{}</h3>{}").format(title, plot))
    intro = "Points from 0 to 10, in percent of the answers. The dashed line is the mean."
    return Section("Scores", join(*parts), "scores", intro)


def agreement(run: Run) -> Section:
    """The reward model against the judge on answers that both scored and training did not see."""
    both = [key for key in run.labels if key in run.scored]
    heading, anchor = "Reward model against judge", "agreement"
    if not both:
        text = (
            "No answer outside training was scored by both. "
            f"reward-model evaluate {run.folder}/reward_model {run.folder}/labels --output {run.folder}/fidelity compares them."
        )
        return Section(heading, caption(text), anchor)
    points: dict[str, list[tuple[float, float]]] = {}
    for name in [*dimension_names(run), "reward"]:
        for key in both:
            judged = run.labels[key].reward if name == "reward" else run.labels[key].scores.get(name)
            if judged is not None and name in run.scored[key]:
                points.setdefault(name, []).append((judged, run.scored[key][name]))
    rows = [[name, len(values), *agreement_figures(values)] for name, values in points.items()]
    grid = table(["", "answers", "Spearman", "mean distance, points"], rows, sortable=False)
    shown = {name: values for name, values in points.items() if name != "reward"} or points
    plot = scatter(shown, "judge", "reward model", diagonal=True)
    parts = [columns(plot, grid)]
    documents = len({key[0] for key in both})
    if documents < 30:
        few = f"Only {documents} prompts: these figures show that the comparison works, not how good the model is."
        parts.append(notice(few))
    for row in run.fidelity.get("results", []):
        if row.get("target") == "reward":
            parts.append(details("All figures for the reward, beside baselines", target_section(row).html))
    intro = "Answers over documents that training did not see. On the dashed line both say the same."
    return Section(heading, join(*parts), anchor, intro)


def agreement_figures(values: Sequence[tuple[float, float]]) -> tuple[float | None, float]:
    """Spearman's ρ over the set (None where one side is constant) and mean distance in points."""
    judged, scored = np.array(values).T
    varied = len(values) > 2 and np.ptp(judged) > 0 and np.ptp(scored) > 0
    rank = float(spearmanr(judged, scored).statistic) if varied else None
    return rank, float(np.abs(judged - scored).mean())


def spending(run: Run) -> Section:
    """Calls and tokens of the judge against what the reward model read, for its training and for its answers."""
    spent, usage = run.judge_spent(), run.score_usage
    judged = len(run.labels) or None
    tokens = spent["read"] + spent.get("written", 0.0) if "read" in spent else None
    read = usage.get("tokens_read")
    scored = usage.get("responses") or len(run.scored) or None
    learnt = max((row.get("num_input_tokens_seen") or 0 for row in run.training), default=0) or None
    rows = [
        spent_row("judge", judged, tokens, spent.get("calls"), run.judge_summary.get("seconds")),
        spent_row("reward model", scored, read, 0, usage.get("seconds")),
        spent_row("its training, once", None, learnt, 0, run.seconds.get("train")),
    ]
    heads = ["", "answers", "tokens", "tokens an answer", "calls to a judge", "time, last run"]
    parts = [table(heads, rows, sortable=False, align=["left", *["right"] * 5])]
    if tokens and read and scored and judged:
        ratio = f"{(tokens / judged) / (read / scored):.1f}"
        parts.append(
            prose(f"For one answer the judge handled {ratio} times the tokens the reward model read.")
        )
    if read and (apart := usage.get("tokens_one_by_one")):
        saved = f"saved {1 - read / apart:.0%} of the model's own tokens"
        parts.append(prose(f"Reading each document once for all its answers {saved}."))
    if read is None:
        parts.append(caption("What the reward model read is not recorded here."))
    return Section("What it took", join(*parts), "spent")


def spent_row(
    name: str, answers: int | None, tokens: float | None, calls: float | None, seconds: object
) -> list[object]:
    """A row of the table: what nobody recorded stays empty."""
    each = int(tokens / answers) if tokens is not None and answers else None
    time = format_seconds(float(seconds)) if isinstance(seconds, int | float) else None
    whole = None if tokens is None else int(tokens)
    return [name, answers, whole, each, calls if name == "judge" or tokens is not None else None, time]


def curves(run: Run) -> Section:
    """Training of the reward model, and DPO."""
    losses = {"loss": "loss", "eval_loss": "held-out loss"}
    margins = {"rewards/margins": "training", "eval_rewards/margins": "held out"}
    accuracies = {"rewards/accuracies": "training", "eval_rewards/accuracies": "held out"}
    plots = [
        curve(run.dpo, losses, "DPO loss", "DPO has no metrics here."),
        curve(run.dpo, margins, "margin"),
        curve(run.dpo, accuracies, "share ordered as the pair"),
        curve(run.dpo, {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}, "implicit reward"),
    ]
    learning = curve(run.training, losses, "loss", "The reward model has no metrics here.")
    parts = [
        Markup("<h3>Reward model</h3>{}").format(learning),
        Markup("<h3>DPO</h3>{}").format(columns(*filter(None, plots))),
    ]
    seen = max((row.get("num_tokens") or 0 for row in run.dpo), default=0)
    saved = max((row.get("tokens_saved") or 0 for row in run.dpo), default=0)
    if seen and saved:
        share = f"{saved / seen:.0%} of {seen:,.0f}"
        parts.append(prose(f"Reading each prompt once for both answers of a pair saved {share} tokens."))
    return Section("Training", join(*parts), "training")


def curve(rows: Sequence[dict[str, Any]], names: dict[str, str], y_label: str, absent: str = "") -> Markup:
    """The named metrics against the step."""
    steps = [row for row in rows if "step" in row]
    found = {
        shown: [(row["step"], row[name]) for row in steps if isinstance(row.get(name), int | float)]
        for name, shown in names.items()
    }
    series = {name: points for name, points in found.items() if points}
    return line(series, "step", y_label) if series else caption(absent) if absent else Markup("")


def next_commands(run: Run) -> list[str]:
    """What to try next."""
    folder = run.folder
    return [
        f"scripts/quickstart.sh --output {folder}-better --judge-url http://localhost:8000/v1 --judge-model NAME",
        "judge-pipeline label YOUR_PROMPTS.jsonl --output runs/yours --dry-run",
        f"reward-model score {folder}/reward_model YOUR_PROMPTS.jsonl --output scored.jsonl",
    ]


def render(run: Run) -> str:
    """The page."""
    try_next = code_block("\n".join(next_commands(run)))
    parts = [
        *(make(run) for make in (glance, stages, distributions, example, statements)),
        *(make(run) for make in (agreement, spending, pairs, curves)),
        Section("Next", try_next, "next", "Three commands to try from here:"),
    ]
    footer = "Everything is in this file; nothing is loaded from elsewhere."
    styles = [REPORT_TEMPLATES.source("answers.css"), TEMPLATES.source("statements.css")]
    return render_page("The whole run on one page", str(run.folder), parts, footer, styles=styles)


def print_summary(run: Run) -> None:
    """A short table for the terminal, where things are, and what to try next."""
    print()
    for name, seconds in run.seconds.items():
        print(f"  {name:<10}{format_seconds(seconds):>12}   {STAGES.get(name, '')}")
    spent, read = run.judge_spent(), run.score_usage.get("tokens_read")
    if "read" in spent and run.labels:
        tokens = (spent["read"] + spent.get("written", 0)) / len(run.labels)
        print(f"\n  judge         {tokens:>12,.0f} tokens an answer, {int(spent.get('calls', 0)):,} calls")
    if read and run.scored:
        answers = run.score_usage.get("responses") or len(run.scored)
        print(f"  reward model  {read / answers:>12,.0f} tokens an answer, no calls")
    if run.small_judge:
        print(
            "\n  A 135M judge is a smoke test of the machinery, not a good judge: do not trust these scores."
        )
    print("\nWhere things are")
    places = {
        "report.html": "this run on one page",
        "labels/report.html": "every label with its evidence",
        "reward_model": "the reward model, plain transformers",
        "scored.jsonl": "answers scored without the judge",
        "pairs.jsonl": "preference pairs, TRL's format",
        "dpo": "what DPO trained",
    }
    for name, what in places.items():
        if (run.folder / name).exists():
            print(f"  {run.folder / name!s:<40} {what}")
    print("\nTry next")
    for command in next_commands(run):
        print(f"  {command}")


def main(argv: Sequence[str]) -> int:
    """Write the report of the run directory named by the only argument."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m scripts.demo.report RUN_DIR", file=sys.stderr)
        return 2
    try:
        run = load_run(Path(argv[0]))
        write_text(run.folder / "report.html", render(run))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_summary(run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
