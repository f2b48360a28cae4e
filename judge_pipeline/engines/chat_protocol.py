"""The chat-completions wire format, pure: a call to a request body, a response body to a reply.

Used by the endpoint engine and by batch files. Nothing is taken on trust: a body without a choice, a choice
without a message, an answer cut at its limit, a refusal and a content filter are each seen as what they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from judge_pipeline.calls.call import Call, CallUsage, Reply, TokenLogprob, typed
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.engines.endpoint_errors import ErrorSaid

SchemaMode = Literal["strict", "loose", "off"]
"""How a JSON schema is sent: as strict, without that word (some servers refuse it), or not at all."""


TOO_LONG = re.compile(
    r"context[ _]length|context window|maximum (input|prompt|sequence|model)|max_model_len|too (long|many tokens)"
    r"|longer than the (model|maximum)|reduce the length",
    re.IGNORECASE,
)
THINKING = ("reasoning_content", "reasoning")
"""Fields of a message in which servers put what a reasoning judge thought."""
SCHEMA_REFUSED = re.compile(r"response_format|json_schema|schema|guided|structured")
FILTERED = re.compile(
    r"content_filter|content management policy|content policy|responsible ?ai", re.IGNORECASE
)


class MalformedReply(Exception):
    """The server's answer is no chat completion; asking again may help."""


def identity_of(model: str, extra_body: Mapping[str, Any]) -> str:
    """The judge as `Call.key` sees it: fields that the user adds to every request shape its answers too."""
    if not extra_body:
        return model
    return f"{model}?{json.dumps(extra_body, sort_keys=True, ensure_ascii=False)}"


def request_body(call: Call, model: str, mode: SchemaMode = "strict", room: int = 0) -> dict[str, Any]:
    """The JSON body for one call; `room` is for thinking, on top of the call's limit, which is for the reply."""
    sampling = call.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [message.model_dump() for message in call.messages],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens + room,
    }
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.logprobs
    if call.json_schema is not None and mode != "off":
        name = "".join(letter if letter.isalnum() else "_" for letter in call.template)[:64] or "reply"
        shape: dict[str, Any] = {"name": name, "schema": call.json_schema}
        if mode == "strict":
            shape["strict"] = True
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return body


DROPPABLE = ("temperature", "top_p", "seed", "logprobs", "top_logprobs")


@dataclass(frozen=True)
class Dialect:
    """Fields that one server calls otherwise, or does not take."""

    schema: SchemaMode = "strict"
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    room: int | None = None
    """Tokens that the judge may think with, beyond a reply's limit; None while it was not seen to think."""

    @classmethod
    def read(cls, text: str) -> Dialect:
        """As `written`."""
        told = json.loads(text)
        return cls(**{**told, "dropped": frozenset(told["dropped"])})

    @property
    def written(self) -> str:
        """As JSON, for a note or a summary."""
        return json.dumps({**asdict(self), "dropped": sorted(self.dropped)})

    def __str__(self) -> str:
        said = [f"{old} is called {new}" for old, new in self.renamed.items()]
        said += [f"{name} is left out" for name in sorted(self.dropped)]
        said += {"strict": [], "loose": ["schemas are sent without strict"], "off": ["no schemas"]}[
            self.schema
        ]
        said += [f"{self.room:,} tokens more, to think with"] if self.room else []
        return ", ".join(said) or "as they are"

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request body as this server takes it."""
        kept = (name for name in body if name not in self.dropped)
        return {self.renamed.get(name, name): body[name] for name in kept}

    def adapted(
        self, said: ErrorSaid, body: Mapping[str, Any], droppable: Sequence[str] = DROPPABLE
    ) -> Dialect | None:
        """How to ask after a 400; None when the error is about nothing that may be changed.

        A field that the error names as `param` is the one; only without one is its message searched for names.
        """
        text = f"{said.message} {said.code}".lower()
        named = said.param.lower()
        if "max_completion_tokens" in text and "max_tokens" in body and named in ("", "max_tokens"):
            return replace(self, renamed={**self.renamed, "max_tokens": "max_completion_tokens"})
        about = named or text
        if "response_format" in body and SCHEMA_REFUSED.search(about):
            return replace(self, schema="loose" if self.schema == "strict" else "off")
        for name in droppable:
            if name in body and (name == named if named else name in text):
                group = {"logprobs", "top_logprobs"} if "logprobs" in name else {name}
                return replace(self, dropped=self.dropped | group)
        return None


def parse_completion(text: str, *, structured: bool = False) -> Reply:
    """The reply in a chat-completion body. Raises MalformedReply when it is not one."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise MalformedReply(f"the reply is not JSON: {text[:200]!r}") from error
    return reply_from_body(body, structured=structured)


def reply_from_body(body: Any, *, structured: bool = False) -> Reply:
    """The reply in a decoded chat-completion body."""
    choice = _first_choice(body)
    message = choice["message"]
    text, thought = _parts(message)
    refusal, finish = message.get("refusal"), choice.get("finish_reason") or "stop"
    if not isinstance(finish, str):
        raise MalformedReply("the finish reason is not text")
    reply = Reply(
        text=text,
        finish_reason=finish,
        usage=_usage(body.get("usage"), thought + after_thinking(text)[1], thought + len(text)),
        logprobs=_logprobs(choice.get("logprobs")),
        structured=structured,
    )
    if refusal or finish == "content_filter":
        detail = f"the judge refused: {refusal}" if refusal else "stopped by a content filter"
        return reply.model_copy(update={"failure": "refused", "detail": detail})
    return typed(reply)


def error_reply(message: str) -> Reply | None:
    """A server's refusal that is about the call itself: too long, or filtered. None for other errors."""
    if FILTERED.search(message):
        return Reply(failure="refused", detail=message, finish_reason="content_filter")
    if TOO_LONG.search(message):
        return Reply(failure="context_too_long", detail=message, finish_reason="error")
    return None


def _first_choice(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise MalformedReply(f"the reply is a {type(body).__name__}, not an object")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReply("the reply has no choices: " + json.dumps(body)[:200])
    choice = choices[0]
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise MalformedReply("the reply's first choice has no message")
    return choice


def inside(value: Any, *path: str) -> Any:
    """What lies at a path of nested objects; None where one is missing or is no object."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _parts(message: Mapping[str, Any]) -> tuple[str, int]:
    """A message's text, and the length of the thinking that came apart from it: in a field of its own, or in other
    parts of a content that is a list."""
    content = message.get("content")
    thought = next((told for name in THINKING if isinstance(told := message.get(name), str)), "")
    if content is None or isinstance(content, str):
        return content or "", len(thought)
    if not isinstance(content, list):
        raise MalformedReply("the message's content is neither text nor a list")
    texts, others = [], 0
    for part in content:
        text = part if isinstance(part, str) else inside(part, "text")
        if isinstance(text, str) and (part is text or inside(part, "type") in (None, "text", "output_text")):
            texts.append(text)
        else:
            others += len(json.dumps(part))
    return "".join(texts), len(thought) or others


def _usage(value: Any, thought: int, whole: int) -> CallUsage:
    """Tokens as counted. Where a judge thought and its tokens for that are not told, they are taken to be the share of
    its words (`thought` of `whole` characters). Some services leave them out of the output; the total shows it."""
    paths = ("prompt_tokens",), ("completion_tokens",), ("total_tokens",)
    details = ("prompt_tokens_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens")
    found = (inside(value, *path) for path in (*paths, *details))
    read, written, total, cached, told = (c if type(c) is int and c >= 0 else 0 for c in found)
    if told and total == read + written + told:
        written += told
    reasoning = told or (written * thought // whole if whole else 0)
    return CallUsage(
        input_tokens=read,
        output_tokens=written,
        cached_input_tokens=cached,
        reasoning_tokens=min(reasoning, written),
    )


def _logprobs(value: Any) -> list[TokenLogprob] | None:
    content = inside(value, "content")
    if not content:
        return None
    try:
        return [
            TokenLogprob(
                token=item["token"],
                logprob=item["logprob"],
                top={top["token"]: top["logprob"] for top in item.get("top_logprobs") or ()},
            )
            for item in content
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedReply(f"the log-probabilities are malformed: {error}") from error
