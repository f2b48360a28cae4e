"""A label run on disk, as `judge-pipeline label` leaves it, for the tests of its report."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

DIMENSIONS = ("helpfulness", "logicality", "faithfulness", "completeness")
LINES = (
    "The harbour of Vell was deepened in 1874, after the second winter in which grain ships could not land.",
    "Its lighthouse burned colza oil until the autumn of 1901 and has been electric ever since.",
    "The council paid for the mole with a tax on salt, which was lifted when the last bond was redeemed.",
    "Pilots kept a book of every vessel; the book for 1888 lists 412 ships and 31 strandings.",
    "During the strike of 1911 the gates stayed closed for nineteen days.",
    "A railway branch reached the quay in 1893 and was torn up seventy years later.",
    "最深的泊位在东码头，水深十一米。",
    "Old maps show the islet 🏝 that was blown up to widen the entrance.",
)
STATEMENTS = (
    ("The harbour was deepened in 1874.", "full", 0),
    ("The lighthouse has been electric since 1901.", "full", 1),
    ("The mole was paid for by a tax on tea.", "none", 2),
    ("The gates were closed for nearly three weeks in 1911.", "partial", 4),
    ("An islet was blown up to widen the entrance.", "full", 7),
)


def document(number: int, lines: int) -> str:
    chosen = random.Random(number)
    parts = [f"Chapter {number}. The harbour of Vell"]
    parts += [" ".join(chosen.choices(LINES, k=4)) for _ in range(max(0, lines - 2))]
    return "\n\n".join([*parts, *LINES])


def evidence_for(context: str, chosen: random.Random) -> dict:
    statements = []
    for number, (text, verdict, line) in enumerate(STATEMENTS, start=1):
        start = context.rindex(LINES[line])
        spans = [{"start": start, "end": start + len(LINES[line]), "score": 0.81}]
        first = context.index(LINES[line])
        if first != start:
            spans.append({"start": first, "end": first + len(LINES[line]), "score": 0.64})
        analysis = (
            "The segment says so in these words." if verdict == "full" else "The segment says otherwise."
        )
        statements.append(
            {
                "id": number,
                "text": text,
                "verdict": verdict,
                "analysis": analysis,
                "failure": None,
                "spans": spans,
            }
        )
    half = len(context) // 2
    points = [
        {"text": "Why the harbour was deepened", "chunk": 0, "start": 0, "end": half, "covered": True},
        {
            "text": "How the mole was paid for",
            "chunk": 1,
            "start": half,
            "end": len(context),
            "covered": False,
        },
    ]
    votes = [float(chosen.randint(6, 9)) for _ in range(3)]
    return {
        "helpfulness": {"analysis": "It answers what was asked, in order.", "votes": votes, "spread": 0.8},
        "logicality": {"analysis": "The steps follow from one another.", "votes": [8.0], "spread": None},
        "faithfulness": {"statements": statements, "rule": None},
        "completeness": {"analysis": "The tax is missing.", "key_points": points, "votes": [6.0]},
    }


def answer_rows(number: int, answers: int, lines: int, chosen: random.Random) -> tuple[dict, list[dict]]:
    context = document(number, lines)
    prompt = {
        "id": f"vell-{number:04d}",
        "document_id": f"doc-{number}",
        "context": context,
        "query": f"What changed in the harbour of Vell, as told in chapter {number}?",
        "responses": [],
    }
    labels = []
    for k in range(answers):
        said = " ".join(text for text, _, _ in STATEMENTS[: 2 + (k % 4)])
        prompt["responses"].append({"id": f"a{k}", "text": f"In short: {said}", "source": "smollm2"})
        scores: dict = {name: float(chosen.randint(4, 10)) for name in DIMENSIONS}
        scores["faithfulness"] = round(chosen.choice([5.0, 6.667, 7.5, 9.0, 10.0]), 3)
        label = {
            "prompt_id": prompt["id"],
            "response_id": f"a{k}",
            "scores": scores,
            "reward": sum(scores.values()) / 4,
            "status": "labelled",
            "failures": [],
            "evidence": evidence_for(context, chosen),
            "usage": {"calls": 12.5, "input_tokens": 9000, "output_tokens": 700, "cached_input_tokens": 6000},
        }
        if (number + k) % 9 == 4:
            scores["completeness"], label["reward"], label["status"] = None, None, "partial"
            detail = "the reply ended at the token limit"
            label["failures"] = [{"dimension": "completeness", "reason": "truncated", "detail": detail}]
            del label["evidence"]["completeness"]
        labels.append(label)
    return prompt, labels


def make_label_run(folder: Path, prompts: int = 3, answers: int = 4, lines: int = 30, seed: int = 0) -> Path:
    """Make `folder/runs/labels` with so many prompts, answers each and paragraphs a document; returns it."""
    chosen = random.Random(seed)
    run = folder / "runs" / "labels"
    run.mkdir(parents=True, exist_ok=True)
    made = [answer_rows(number, answers, lines, chosen) for number in range(1, prompts + 1)]
    write_lines(folder / "prompts.jsonl", [prompt for prompt, _ in made])
    write_lines(run / "labels.jsonl", [label for _, labels in made for label in labels])
    total = prompts * answers
    summary = {
        "prompts": prompts,
        "responses": total,
        "calls": {"made": total * 12, "from_store": 3, "shared": total},
        "tokens": {"input": total * 9000, "output": total * 700, "cached_input": total * 6000},
        "cost": {"total": 0.0123 * total},
        "seconds": 512.4,
        "stopped": None,
        "store": {
            "calls": total * 12 + 3,
            "failed_attempts": 1,
            "tokens": {"input": total * 9100, "output": total * 710},
        },
    }
    (run / "summary.json").write_text(json.dumps(summary))
    settings = {
        "command": "judge-pipeline label",
        "config": {"prompts": str(folder / "prompts.jsonl"), "judge": {"model": "smollm2", "base_url": []}},
        "started": "2025-11-21T03:00:00Z",
    }
    (run / "run.yaml").write_text(yaml.safe_dump(settings))
    return run


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
