"""Batch files in tests: the command that writes and takes them, and what a batch service makes of one."""

from __future__ import annotations

import json

from judge_servers import completion, sane_text

from judge_pipeline.cli import main


def label(prompts, run, *more):
    return main(
        [
            "label",
            str(prompts),
            "--output",
            str(run),
            "--judge.model",
            "judge",
            "--retrieval",
            "bm25",
            *map(str, more),
        ]
    )


def answer_file(asked, answers, spoil=None):
    """What a batch API makes of a batch file; `spoil` may change or drop rows."""
    rows = []
    for line in asked.read_text().splitlines():
        row = json.loads(line)
        assert (row["method"], row["url"]) == ("POST", "/v1/chat/completions")
        body = completion(sane_text(row["body"]))
        rows.append(
            {
                "id": f"batch-{len(rows)}",
                "custom_id": row["custom_id"],
                "response": {"status_code": 200, "request_id": "r", "body": body},
                "error": None,
            }
        )
    lines = [json.dumps(row) for row in (spoil(rows) if spoil else rows)]
    answers.write_text("\n".join(lines) + "\n")
    return rows


def rows_of(path):
    """The rows of a batch file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
