"""Prompts for the quickstart: questions of our own about the reference documentation that Python itself carries.

`build OUT` writes ten prompts over ten documents (2k–4k tokens each, one over 6k; SmolLM2's tokens).
`split ANSWERS TO_LABEL TO_SCORE` deals the answered prompts in two halves: one for the judge, one for the reward
model alone. The longest document goes to the reward model, which reads it once for all its answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]
from typing import Any

import yaml

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import Prompt

QUESTIONS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_bytes())
BREVITY = "Answer in two or three sentences."
"""A 135M model rambles when it may; short answers keep the run short too."""


def build_prompts() -> list[Prompt]:
    """The ten prompts. Raises UserError when this Python carries none of a document's topics."""
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


def split(answers: Path, to_label: Path, to_score: Path) -> None:
    """Deal the answered prompts in two halves: the judge's, and the reward model's."""
    judged = {item["document"] for item in QUESTIONS if item["for_judge"]}
    prompts = list(read_prompts(answers, need_responses=True))
    write_records(to_label, [prompt for prompt in prompts if prompt.id in judged])
    write_records(to_score, [prompt for prompt in prompts if prompt.id not in judged])


def main(argv: Sequence[str]) -> int:
    """Run `build OUT` or `split ANSWERS TO_LABEL TO_SCORE`."""
    try:
        match [*argv[:1], *map(Path, argv[1:])]:
            case ["build", Path() as output]:
                build(output)
            case ["split", Path() as answers, Path() as to_label, Path() as to_score]:
                split(answers, to_label, to_score)
            case _:
                raise UserError(f"not understood: {' '.join(argv)}", str(__doc__).split("\n\n")[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
