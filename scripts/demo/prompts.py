"""Prompts for the quickstart: questions of our own about the reference documentation that Python itself carries.

`build OUT` writes ten prompts over ten documents (2k–4k tokens each, one over 6k; SmolLM2's tokens).
`split ANSWERS TO_LABEL TO_SCORE` deals the answered prompts in two halves: one for the judge, one for the reward
model alone. The longest document goes to the reward model, which reads it once for all its answers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]

from pydantic import Field

from judge_pipeline.common.config import Command, Config, main
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import Prompt

# (document, topics it is made of, question, for the judge?)
QUESTIONS: tuple[tuple[str, tuple[str, ...], str, bool], ...] = (
    (
        "string-literals",
        ("strings", "atom-literals"),
        "What does the prefix 'r' change about a string literal, how do bytes literals differ from text, and what "
        "happens to an escape sequence that Python does not recognise?",
        True,
    ),
    (
        "naming-and-binding",
        ("execmodel", "global", "nonlocal"),
        "When does Python raise UnboundLocalError instead of finding the global name, and how do the global and "
        "nonlocal statements change where a name is looked up?",
        True,
    ),
    (
        "assignment",
        ("assignment", "augassign"),
        "How is a tuple target with a starred element filled during assignment, and in what way does an augmented "
        "assignment differ from writing the operation out?",
        True,
    ),
    (
        "comparisons",
        ("comparisons", "booleans"),
        "How does Python evaluate a chained comparison such as a < b < c, and which rules should a class follow "
        "when it defines its own comparison methods?",
        True,
    ),
    (
        "importing",
        ("import", "with"),
        "Describe step by step what 'from package import name' does, and name the restrictions on wildcard imports.",
        True,
    ),
    (
        "errors",
        ("try", "raise", "assert"),
        "In which order do the except, else and finally clauses of a try statement run, and what happens to a "
        "return value when finally contains a return of its own?",
        False,
    ),
    (
        "customization",
        ("customization",),
        "What is the difference between __new__ and __init__, and why does the documentation warn against relying "
        "on __del__?",
        False,
    ),
    (
        "attribute-access",
        ("attribute-access",),
        "Explain how a data descriptor and a non-data descriptor differ when an instance attribute of the same "
        "name exists, and what __slots__ does to instances.",
        False,
    ),
    (
        "mappings",
        ("typesmapping",),
        "Which ways are there to build a dictionary, what do dictionary views reflect, and what order do "
        "dictionaries keep?",
        False,
    ),
    (
        "string-methods",
        ("string-methods",),
        "Compare strip, removeprefix and translate: what does each one take as its argument and what does it "
        "return?",
        False,
    ),
)


BREVITY = "Answer in two or three sentences."
"""A 135M model rambles when it may; short answers keep the run short too."""


class BuildConfig(Config):
    """Settings of `build`."""

    output: Path = Field(description="file to write the prompts to", json_schema_extra={"positional": True})


class SplitConfig(Config):
    """Settings of `split`."""

    answers: Path = Field(description="prompts with their answers", json_schema_extra={"positional": True})
    to_label: Path = Field(description="file for the judge's half", json_schema_extra={"positional": True})
    to_score: Path = Field(
        description="file for the reward model's half", json_schema_extra={"positional": True}
    )


def build_prompts() -> list[Prompt]:
    """The ten prompts. Raises UserError when this Python carries none of a document's topics."""
    prompts = []
    for name, parts, question, _ in QUESTIONS:
        missing = [part for part in parts if part not in topics]
        if missing:
            raise UserError(
                f"this Python's pydoc_data has no topic '{missing[0]}'",
                "run with a standard CPython, 3.11 or later",
            )
        context = "\n\n".join(topics[part].strip() for part in parts)
        prompts.append(
            Prompt(id=name, document_id=f"python-{name}", context=context, query=f"{question} {BREVITY}")
        )
    return prompts


def build(config: BuildConfig) -> None:
    """Write the prompts."""
    prompts = build_prompts()
    write_records(config.output, prompts)
    characters = sum(len(prompt.context) for prompt in prompts)
    print(
        f"{len(prompts)} prompts over {len(prompts)} documents, {characters:,} characters → {config.output}"
    )


def split(config: SplitConfig) -> None:
    """Deal the answered prompts in two halves."""
    judged = {name for name, _, _, for_judge in QUESTIONS if for_judge}
    prompts = list(read_prompts(config.answers, need_responses=True))
    write_records(config.to_label, [prompt for prompt in prompts if prompt.id in judged])
    write_records(config.to_score, [prompt for prompt in prompts if prompt.id not in judged])


COMMANDS = (
    Command("build", "write the prompts", BuildConfig, build, "scripts.demo.prompts build prompts.jsonl"),
    Command(
        "split",
        "deal in two halves",
        SplitConfig,
        split,
        "scripts.demo.prompts split a.jsonl l.jsonl s.jsonl",
    ),
)

if __name__ == "__main__":
    sys.exit(main("scripts.demo.prompts", COMMANDS))
