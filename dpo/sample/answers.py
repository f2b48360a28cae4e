"""Drawn answers as records: marked, numbered, with what it takes to draw and to train them again."""

from __future__ import annotations

from typing import Any

from dpo.sample.base import Draw
from dpo.sample.sample_config import SampleConfig
from judge_pipeline.common.records import Prompt, Response


def mark(draws: list[Draw], known_texts: set[str]) -> list[list[str]]:
    """Flags of each answer: `empty`, `truncated`, `refused`, `duplicate` (of an earlier answer to the prompt)."""
    flags = []
    seen = set(known_texts)
    for draw in draws:
        text = draw.text.strip()
        marks = ["empty"] if not text else ["duplicate"] if text in seen else []
        marks += {"length": ["truncated"], "refused": ["refused"], "stop": []}[draw.finish]
        seen.add(text)
        flags.append(marks)
    return flags


def with_answers(prompt: Prompt, draws: list[Draw], config: SampleConfig, template: str | None) -> Prompt:
    """The prompt with the drawn answers behind those it has; ids never collide.

    `template` is the fingerprint of the chat template they were drawn with, which `dpo train` compares.
    """
    kept = list(prompt.responses)
    taken = {response.id for response in kept}
    free = (name for number in range(len(kept) + len(draws) + 1) if (name := f"sample-{number}") not in taken)
    all_flags = mark(draws, {response.text.strip() for response in kept})
    for draw, flags in zip(draws, all_flags, strict=True):
        row: dict[str, Any] = {"id": next(free), "text": draw.text, "source": config.model, "flags": flags}
        row |= {"seed": draw.seed, "finish_reason": draw.finish, "template": template}
        more: dict[str, Any] = {"reasoning": draw.reasoning, "generated": draw.generated}
        more |= {"tokens": draw.tokens if draw.tokens >= 0 else None}
        more |= {"chat_template_kwargs": config.chat_template_kwargs or None}
        row |= {name: value for name, value in more.items() if value is not None}
        kept.append(Response.model_validate(row))
    return prompt.model_copy(update={"responses": kept})
