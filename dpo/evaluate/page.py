"""The comparison of two models as a page with the answers side by side, and as lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dpo.evaluate.match import Match
from judge_pipeline.common.html.charts import histogram, interval_bars, stat_tiles, table
from judge_pipeline.common.html.page import (
    Section,
    caption,
    code_block,
    columns,
    details,
    join,
    prose,
    render_page,
)
from judge_pipeline.common.records import Response
from judge_pipeline.statistics.render import interval

WORDS = {1.0: "win", 0.5: "tie", 0.0: "loss", None: "undecided"}


def figure_rows(found: dict[str, Any]) -> list[list[str]]:
    """Rows `figure, A, B, A - B` of everything measured on both sides."""
    rows = []
    sides = {"reward": found["reward"], **found["dimensions"], "length, characters": found["length"]}
    for name, side in sides.items():
        if side["a"]["value"] is not None:
            digits = 0 if name.startswith("length") else 2
            rows.append([name, *(interval(side[key], digits) for key in ("a", "b", "difference"))])
    if found["facts"]:
        for name in ("facts_per_answer", "share_supported"):
            pair = [found["facts"][key][name] for key in ("a", "b")]
            rows.append([name.replace("_", " "), *(interval(item, 2) for item in pair), ""])
    return rows


def print_evaluation(found: dict[str, Any], output: Path) -> None:
    """The comparison as a few lines."""
    print(
        f"{found['a']} against {found['b']} on {found['prompts']} prompts of {found['documents']} documents, "
        f"decided by {found['decided_by']}"
    )
    for name in ("win", "tie", "loss"):
        print(f"  {name:<5} {interval(found[name], 2)}")
    print(f"  won at equal lengths {interval(found['length_controlled'], 2)}; a tie is half of a win")
    for row in figure_rows(found):
        print(f"  {row[0]:<20} {row[1]:<24} {row[2]:<24} {row[3]}")
    for reason, count in found["left_out"].items():
        if count:
            print(f"  left out, {reason}: {count}")
    if undecided := found["prompts"] - found["judged"]:
        print(f"  undecided for lack of a reward or a verdict: {undecided}")
    print(f"  report: {output / 'report.html'}")


def evaluation_page(found: dict[str, Any], matches: Sequence[Match], show: int) -> str:
    """One self-contained HTML file."""
    a, b = found["a"], found["b"]
    shares = {f"{a} better": found["win"], "as good": found["tie"], f"{b} better": found["loss"]}
    tiles = [
        ("prompts", found["prompts"], f"{found['documents']} documents"),
        ("win", interval(found["win"], 2), f"share of prompts where {a} is better"),
        ("loss", interval(found["loss"], 2), f"share of prompts where {b} is better"),
        (
            "at equal lengths",
            interval(found["length_controlled"], 2),
            "share won, ties half; lengths taken out",
        ),
        ("reward difference", interval(found["reward"]["difference"], 2), "points, mean over prompts"),
        ("length difference", interval(found["length"]["difference"], 0), "characters"),
    ]
    wins = interval_bars(shares, "share of prompts")
    figures = table(["figure", a, b, f"{a} minus {b}"], figure_rows(found), align=["left"] * 4)
    noted = [f"Warning: {warning}." for warning in found["warnings"]]
    sections = [
        Section(
            "In short", stat_tiles(tiles), "short", " ".join([f"Decided by {found['decided_by']}.", *noted])
        ),
        Section("Who wins", wins, "wins", "Whiskers are 95% intervals over documents."),
        Section("Figures", figures, "figures"),
    ]
    rewards = [(match.mean_reward(0), match.mean_reward(1)) for match in matches]
    differences = [one - other for one, other in rewards if one is not None and other is not None]
    if differences:
        chart = histogram({f"{a} minus {b}": differences}, 20, "reward difference, points")
        sections.append(Section("Differences of reward", chart, "differences"))
    pairs = join(*(_side_by_side(match, a, b) for match in matches[:show]))
    sections.append(Section("Side by side", pairs, "answers"))
    return render_page(f"{a} against {b}", "Answers of two models to the same prompts", sections)


def _side_by_side(match: Match, a: str, b: str) -> Markup:
    sides = [
        join(Markup("<h4>{}</h4>").format(name), *(_answer(answer) for answer in match.answers[side]))
        for side, name in enumerate((a, b))
    ]
    rewards = [match.mean_reward(side) for side in (0, 1)]
    shown = " against ".join("–" if reward is None else f"{reward:.2f}" for reward in rewards)
    context = details("Document", code_block(match.prompt.context))
    body = join(prose(match.prompt.question), context, columns(*sides))
    return details(f"{WORDS[match.vote]} · {shown} · {match.prompt.id}: {match.prompt.question[:90]}", body)


def _answer(answer: Response) -> Markup:
    points = [f"{name} {value:.1f}" for name, value in (answer.scores or {}).items() if value is not None]
    head = f"reward {answer.reward:.2f}" if answer.reward is not None else "no reward"
    note = " · ".join(filter(None, (head, ", ".join(answer.flags), ", ".join(points))))
    return join(caption(note), prose(answer.text))
