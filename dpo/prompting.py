"""The one place where a document and a question become chat messages for the model being trained.

`dpo sample` asks with these messages and `dpo pairs` writes the same ones as `prompt`, so a pair's prompt is
exactly what the model saw when it answered. The form is the paper's (LongReward, section 4.1, and the LongAlign
data it builds on): the document, an empty line, the question. The chat template around it is the model's own.
"""

from __future__ import annotations

import hashlib

from judge_pipeline.records import Prompt

PROMPT_FORMAT = "{context}\n\n{query}"
"""Recorded in every run.yaml; braces are put in, never parsed, so a document may hold any of them."""

ChatMessages = list[dict[str, str]]


def to_messages(prompt: Prompt) -> ChatMessages:
    """The conversation so far: one user turn with the document before the question."""
    return [{"role": "user", "content": f"{prompt.context}\n\n{prompt.query}"}]


def template_id(template: str | None) -> str | None:
    """A short fingerprint of a chat template; None where an endpoint keeps its template to itself."""
    return None if template is None else hashlib.sha256(template.strip().encode()).hexdigest()[:16]
