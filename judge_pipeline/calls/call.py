"""A judge call and its reply: what dimensions ask for, what engines answer, what the call store remembers.

A call's key covers everything that determines its answer (model, messages, sampling, schema, prompt version)
and nothing else: not where it was asked, not which answer or dimension wanted it, not how long the answer might have
been (a whole answer is the same under any limit). Equal calls are one call.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, Field

from judge_pipeline.calls.thinking import after_thinking

FailureReason = Literal[
    "http",  # the endpoint answered with an error that retries did not cure
    "timeout",
    "truncated",  # finish_reason "length": half an answer is no answer
    "refused",  # refusal or content filter
    "empty_reply",
    "unparsable",
    "out_of_range",
    "missing_verdict",
    "no_statements",
    "empty_answer",
    "context_too_long",
    "stopped",  # the run ended at --max-calls or --max-cost before this call
    "batch_error",  # a row of a batch file was wrong or doubled
    "pending",  # nothing failed: the answer comes in a batch file
    "superseded",  # of an attempt: an answer that another one took the place of
]

UNASKED = frozenset({"stopped", "pending"})
"""Failures of calls that nobody was asked yet: the next run does them."""


class Message(BaseModel, frozen=True):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(BaseModel, frozen=True):
    """How the judge decodes; `sample` tells repeated votes on one question apart."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None
    sample: int = 0
    logprobs: int = 0
    """How many top log-probabilities to ask for at each position; 0 for none."""


class Call(BaseModel, frozen=True):
    """One question to the judge."""

    template: str
    """Name of the prompt template, e.g. `faithfulness.verify`; also the first part of the issue order."""
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    json_schema: dict[str, Any] | None = None
    """The shape of the answer where the engine can hold the model to it; None for the text protocol."""
    prompt_version: str = ""
    """Hash of the template's text: an edited prompt is another question."""

    def asked(self) -> dict[str, Any]:
        """All that determines the answer of a model."""
        return {
            "messages": [message.model_dump() for message in self.messages],
            "sampling": self.sampling.model_dump(),
            "schema": self.json_schema,
            "prompt_version": self.prompt_version,
        }

    def key(self, model: str) -> str:
        """SHA-256 over all that determines the answer of `model`, hex."""
        return key_of(model, self.asked())

    def with_room(self, max_tokens: int) -> Call:
        """The same call, whose answer may be so long."""
        return self.model_copy(
            update={"sampling": self.sampling.model_copy(update={"max_tokens": max_tokens})}
        )


def key_of(model: str, asked: dict[str, Any], *, with_limit: bool = False) -> str:
    """The key of what `Call.asked` tells; `with_limit` makes it as the first version of the store did."""
    left_out = () if with_limit else ("max_tokens",)
    sampling = {name: value for name, value in asked["sampling"].items() if name not in left_out}
    parts = {"model": model, **asked, "sampling": sampling}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class TokenLogprob(BaseModel):
    """One generated token, its log-probability, and the most likely tokens at its place."""

    token: str
    logprob: float
    top: dict[str, float] = Field(default_factory=dict)


class CallUsage(BaseModel):
    """Tokens as the engine counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the output tokens, those that a reasoning judge thought with."""

    def __add__(self, other: CallUsage) -> CallUsage:
        return CallUsage(**{name: value + getattr(other, name) for name, value in self})


class Reply(BaseModel):
    """What came back. Either `failure` is None and `text` is the whole answer, or `failure` says why not."""

    text: str = ""
    finish_reason: str = "stop"
    usage: CallUsage = CallUsage()
    latency_s: float = 0.0
    logprobs: list[TokenLogprob] | None = None
    failure: FailureReason | None = None
    detail: str = ""
    structured: bool = False
    """True when the engine held the answer to the call's JSON schema."""
    earlier: list[Reply] = Field(default_factory=list)
    """Failed attempts before this one that were answered, and so paid for."""


def typed(reply: Reply) -> Reply:
    """The reply, as a typed failure where it is no whole answer: cut at its limit, or empty.

    A closed JSON value is whole, even if a constrained engine went on with white space to the limit.
    """
    if reply.finish_reason == "length" and not (reply.structured and _closed(reply.text)):
        detail = f"cut at its token limit after {reply.usage.output_tokens} tokens"
        return reply.model_copy(update={"failure": "truncated", "detail": detail})
    if not after_thinking(reply.text)[0].strip():
        detail = "the judge thought and said nothing" if reply.text.strip() else "the judge said nothing"
        return reply.model_copy(update={"failure": "empty_reply", "detail": detail})
    return reply


def _closed(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def context_too_long(call: Call, prompt_tokens: int, window: int | None) -> Reply | None:
    """A typed failure when prompt and answer do not fit the window together; nothing is ever cut."""
    if window is None or prompt_tokens + call.sampling.max_tokens <= window:
        return None
    return Reply(
        failure="context_too_long",
        finish_reason="error",
        detail=f"{prompt_tokens} tokens and up to {call.sampling.max_tokens} for the answer do not fit the "
        f"judge's window of {window}",
    )
