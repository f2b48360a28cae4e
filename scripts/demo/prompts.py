"""Prompts for the quickstart: questions of our own about the reference documentation that Python itself carries.

`build OUT` writes six prompts over six documents (2k–4k of SmolLM2's tokens each).
`split ANSWERS TO_LABEL` takes out the two that this run's judge labels; the reward model scores all of them.
`deal LABELS DIR` parts the labelled documents that come with this repository: `learn.jsonl` and `learn_labels.jsonl`
for training, `shown.jsonl` and `shown_labels.jsonl` for the report, which shows them as the trained model sees them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]
from typing import Any

import yaml

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_labels, read_prompts, write_records
from judge_pipeline.common.records import Prompt

QUESTIONS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_bytes())
BREVITY = "Answer in two or three sentences."
"""A 135M model rambles when it may; short answers keep the run short too."""


JUDGED = Path(__file__).with_name("judged") / "prompts.jsonl"
SHOWN = ("demo-07", "demo-22")
"""Documents kept out of training, for the report."""


def build_prompts() -> list[Prompt]:
    """The prompts. Raises UserError when this Python carries none of a document's topics."""
    prompts = []
    for item in QUESTIONS:
        missing = [topic for topic in item["topics"] if topic not in topics]
        if missing:
            message = f"this Python's pydoc_data has no topic '{missing[0]}'"
            raise UserError(message, "run with a standard CPython, 3.11 or later")
        name, text = item["document"], "\n\n".join(topics[topic].strip() for topic in item["topics"])
        query = f"{item['question']} {BREVITY}"
        prompts.append(Prompt(id=name, document_id=f"python-{name}", context=text, query=query))
    return prompts


def build(output: Path) -> None:
    """Write the prompts."""
    prompts = build_prompts()
    write_records(output, prompts)
    characters = sum(len(prompt.context) for prompt in prompts)
    print(f"{len(prompts)} prompts over {len(prompts)} documents, {characters:,} characters → {output}")


def split(answers: Path, to_label: Path) -> None:
    """Take out the prompts that the judge labels."""
    judged = {item["document"] for item in QUESTIONS if item["for_judge"]}
    write_records(
        to_label, [item for item in read_prompts(answers, need_responses=True) if item.id in judged]
    )


def deal(labels: Path, folder: Path) -> None:
    """Part labelled prompts into those to learn from and those to show."""
    prompts, rows = list(read_prompts(JUDGED, need_responses=True)), list(read_labels(labels))
    folder.mkdir(parents=True, exist_ok=True)
    for name, shown in (("learn", False), ("shown", True)):
        kept = [row for row in rows if (row.prompt_id in SHOWN) is shown]
        write_records(folder / f"{name}.jsonl", [item for item in prompts if (item.id in SHOWN) is shown])
        write_records(folder / f"{name}_labels.jsonl", kept)
        print(f"{name}: {len({row.prompt_id for row in kept})} documents, {len(kept)} labelled answers")


def main(argv: Sequence[str]) -> int:
    """Run one of the commands above."""
    try:
        match [*argv[:1], *map(Path, argv[1:])]:
            case ["build", Path() as output]:
                build(output)
            case ["split", Path() as answers, Path() as to_label]:
                split(answers, to_label)
            case ["deal", Path() as labels, Path() as folder]:
                deal(labels, folder)
            case _:
                raise UserError(f"not understood: {' '.join(argv)}", str(__doc__).split("\n\n")[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
