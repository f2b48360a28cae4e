"""One page for a whole quickstart run: what the reward model learnt, one document to read, what ran live, and what it took.

In: a run directory with the stages' outputs (`run.load_run` names the files). Out: ``RUN_DIR/report.html``, one
self-contained file, and a short table in the terminal. A stage that has not run is named as absent; nothing is made
up for it.

    python -m scripts.demo.report RUN_DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.formatting import format_seconds
from judge_pipeline.common.html.charts import table
from judge_pipeline.common.html.page import Section, caption, code_block, join, prose, render_page
from judge_pipeline.common.record_files import write_text
from judge_pipeline.report.write import TEMPLATES as REPORT_TEMPLATES
from scripts.demo.cases import TEMPLATES, documents
from scripts.demo.live import dpo, judged, new_answers
from scripts.demo.proof import agreement, proof
from scripts.demo.run import STAGES, Run, load_run


def spending(run: Run) -> Section:
    """Calls and tokens of this run's judge against what the reward model read, and the time of every stage."""
    spent, usage = run.judge_spent(), run.score_usage
    judged = len(run.labels) or None
    tokens = spent["read"] + spent.get("written", 0.0) if "read" in spent else None
    read = usage.get("tokens_read")
    scored = usage.get("responses") or len(run.scored) or None
    rows = [
        spent_row("judge", judged, tokens, spent.get("calls"), run.judge_summary.get("seconds")),
        spent_row("reward model", scored, read, 0, usage.get("seconds")),
        spent_row("its training, once", None, None, 0, run.seconds.get("train")),
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
    if run.seconds:
        rows = [[name, STAGES[name], format_seconds(seconds)] for name, seconds in run.seconds.items()]
        parts.append(
            table(["stage", "what it does", "time"], rows, sortable=False, align=["left", "left", "right"])
        )
    else:
        parts.append(caption("No stage has left its time here."))
    return Section("What it took", join(*parts), "spent")


def spent_row(
    name: str, answers: int | None, tokens: float | None, calls: float | None, seconds: object
) -> list[object]:
    """A row of the table: what nobody recorded stays empty."""
    each = int(tokens / answers) if tokens is not None and answers else None
    time = format_seconds(float(seconds)) if isinstance(seconds, int | float) else None
    whole = None if tokens is None else int(tokens)
    return [name, answers, whole, each, calls if name == "judge" or tokens is not None else None, time]


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
        *(make(run) for make in (proof, documents, agreement, judged, new_answers, dpo, spending)),
        Section("Next", try_next, "next", "Three commands to try from here:"),
    ]
    footer = "Everything is in this file; nothing is loaded from elsewhere."
    styles = [REPORT_TEMPLATES.source("answers.css"), TEMPLATES.source("statements.css")]
    title = "A judge, distilled"
    return render_page(title, f"One run of scripts/quickstart.sh: {run.folder}", parts, footer, styles=styles)


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
