"""Any OpenAI-compatible endpoint, or several: typed failures, retries, and a concurrency that finds itself.

Each base URL is a lane with its own client and gate. A prompt's calls stay in one lane, chosen by a hash of the
prompt's id, so that the lane's prefix cache keeps what it has read; only a lane that cannot be reached is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import ANYWHERE, Place
from judge_pipeline.engines.chat_protocol import (
    MalformedReply,
    SchemaMode,
    error_reply,
    identity_of,
    parse_completion,
    request_body,
)
from judge_pipeline.engines.concurrency import AdaptiveLimit, Gate, Slot
from judge_pipeline.engines.retries import (
    OVERLOADED_STATUS,
    RETRIED_STATUS,
    RetryPolicy,
    Setback,
    retry_after,
)

GONE_AFTER = 12
"""This many calls in a row that found no server at all, each after all its retries, end the run."""


@dataclass
class Dialect:
    """What this server wants said differently; learnt from its refusals, once."""

    schema: SchemaMode = "strict"
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def speak(self, call: Call, model: str) -> dict[str, Any]:
        """The request body as this server takes it."""
        body = request_body(call, model, self.schema)
        for name in self.dropped:
            body.pop(name, None)
        return {self.renamed.get(name, name): value for name, value in body.items()}

    def learn(self, message: str, body: Mapping[str, Any]) -> bool:
        """Change the way of speaking after a 400; False when there is nothing to learn from it."""
        text = message.lower()
        if "max_completion_tokens" in text and "max_tokens" in body:
            self.renamed["max_tokens"] = "max_completion_tokens"
            return True
        if "response_format" in body and re.search(
            r"response_format|json_schema|schema|guided|structured", text
        ):
            self.schema = "loose" if self.schema == "strict" else "off"
            return True
        for name in ("temperature", "top_p", "seed", "logprobs", "top_logprobs"):
            if name in body and name in text:
                self.dropped |= {"logprobs", "top_logprobs"} if "logprobs" in name else {name}
                return True
        return False


@dataclass
class Lane:
    """One base URL."""

    url: str
    client: openai.AsyncOpenAI
    gate: Gate
    dialect: Dialect
    unreached: int = 0
    """Calls in a row that found nobody there."""


class EndpointEngine:
    """Answers calls over HTTP. Make one with `connect` (in `judge_pipeline.engines.preflight`) to have it checked."""

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        api_key: str,
        *,
        max_concurrency: int = 256,
        timeout_s: float = 600.0,
        policy: RetryPolicy | None = None,
        extra_body: Mapping[str, Any] | None = None,
        structured: bool = True,
    ) -> None:
        self.model = model
        self.extra_body = dict(extra_body or {})
        self.identity = identity_of(model, self.extra_body)
        self.supports_schema = structured
        self.supports_logprobs = True
        self.context_window: int | None = None
        self.timeout_s = timeout_s
        self.policy = policy or RetryPolicy()
        self.max_concurrency = max_concurrency
        self._dice = random.Random(0)  # only spreads retries in time
        self.lanes = [
            Lane(
                url.rstrip("/"),
                openai.AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=timeout_s),
                Gate(AdaptiveLimit(max_concurrency)),
                Dialect("strict" if structured else "off"),
            )
            for url in base_urls
        ]

    def set_structured(self, able: bool) -> None:
        """Say whether the endpoint holds answers to a JSON schema; found out by `preflight.probe_schema`."""
        self.supports_schema = able
        for lane in self.lanes:
            if not able:
                lane.dialect.schema = "off"

    def _lane_number(self, place: Place) -> int:
        digest = hashlib.sha256(place.affinity.encode()).digest()
        return int.from_bytes(digest[:8], "big") % len(self.lanes)

    def where(self, place: Place) -> str:
        """The base URL that such a call goes to."""
        return self.lanes[self._lane_number(place)].url

    def max_parallel(self) -> int:
        """All lanes at their ceilings."""
        return self.max_concurrency * len(self.lanes)

    async def answer(self, call: Call, place: Place = ANYWHERE) -> Reply:
        """Ask until there is an answer or the retries are used up; see `Engine.answer`."""
        home = self._lane_number(place)
        admitted = False
        setback = Setback("http", "not tried")
        for attempt in range(self.policy.retries + 1):
            # The first retries stay home; a lane that is really gone is worth losing its cache for.
            away = attempt // 2 if setback.unreachable else 0
            lane = self.lanes[(home + away) % len(self.lanes)]
            order = place.order if not admitted else ()  # whoever waits to try again goes first
            async with lane.gate.slot(order) as slot:
                if not admitted:
                    place.admit()
                    admitted = True
                result = await self._attempt(lane, call, slot)
            if isinstance(result, Reply):
                lane.unreached = 0
                return result
            setback = result
            if attempt < self.policy.retries:
                await asyncio.sleep(self.policy.delay(attempt, setback.retry_after_s, self._dice))
        self._note_unreached(lane, setback)
        detail = f"{setback.detail} (after {self.policy.retries + 1} attempts)"
        return (setback.reply or Reply()).model_copy(update={"failure": setback.reason, "detail": detail})

    def _note_unreached(self, lane: Lane, setback: Setback) -> None:
        lane.unreached = lane.unreached + 1 if setback.unreachable else 0
        if all(lane.unreached >= GONE_AFTER for lane in self.lanes):
            raise UserError(
                f"the endpoint {lane.url} is gone: {setback.detail}",
                "everything finished is kept; start the endpoint and run the same command again",
            )

    async def _attempt(self, lane: Lane, call: Call, slot: Slot) -> Reply | Setback:
        """One request (two if the server wants it put differently)."""
        result = await self._post(lane, call)
        if isinstance(result, Setback):
            if result.overloaded or result.reason == "timeout":
                slot.overload(result.retry_after_s)
            return result
        slot.succeeded(call.template, result.usage.output_tokens)
        if result.failure == "empty_reply":
            return Setback("empty_reply", result.detail, reply=result)
        return result

    async def _post(self, lane: Lane, call: Call) -> Reply | Setback:
        started = time.perf_counter()
        while True:
            body = lane.dialect.speak(call, self.model)
            try:
                text = await self._send(lane, body)
                reply = parse_completion(text, structured="response_format" in body)
                return reply.model_copy(update={"latency_s": time.perf_counter() - started})
            except MalformedReply as error:
                return Setback("http", str(error))
            except openai.APIStatusError as error:
                message = _message(error)
                about_call = error_reply(message) is not None
                if error.status_code in (400, 422) and not about_call and lane.dialect.learn(message, body):
                    continue  # each lesson changes the body, and there are only so many
                return self._refusal(lane, error)
            except (openai.APITimeoutError, TimeoutError):
                return Setback("timeout", f"no answer within {self.timeout_s:g} s")
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                return Setback(
                    "http", f"connection failed: {cause!r}", unreachable=_refused_connection(cause)
                )

    async def _send(self, lane: Lane, body: dict[str, Any]) -> str:
        """POST as raw text: what comes back is judged by us, not by the client's models.

        The client's typed method would walk through every message twice (10 ms a call, measured); `post` does not.
        """
        # The client's timeout restarts with every byte; this one bounds the whole exchange.
        async with asyncio.timeout(self.timeout_s):
            text: str = await lane.client.post(
                "/chat/completions", body={**body, **self.extra_body}, cast_to=str
            )
            return text

    def _refusal(self, lane: Lane, error: openai.APIStatusError) -> Reply | Setback:
        status, message = error.status_code, _message(error)
        detail = f"HTTP {status}: {message[:300]}"
        if status in (401, 403):
            raise UserError(f"{lane.url} refuses the key: {message[:300]}", "check --judge.api-key-env")
        if status == 404:
            raise UserError(f"{lane.url} has no model '{self.model}' (HTTP 404: {message[:300]})")
        if status == 429 and "insufficient_quota" in message:
            raise UserError(
                f"{lane.url}: the account's quota is spent: {message[:300]}",
                "everything finished is kept; run the same command again when there is quota",
            )
        if status in RETRIED_STATUS:
            return Setback("http", detail, status in OVERLOADED_STATUS, retry_after(error.response.headers))
        known = error_reply(detail) if status in (400, 413, 422) else None
        if known is not None:
            return known
        return Reply(failure="http", detail=detail, finish_reason="error")

    async def close(self) -> None:
        """Close all connections."""
        for lane in self.lanes:
            await lane.client.close()


def _message(error: openai.APIStatusError) -> str:
    try:
        return error.response.text or str(error)
    except RuntimeError:  # the body was never read: only the status is known
        return str(error)


def _refused_connection(cause: BaseException) -> bool:
    """Nobody there at all, as opposed to a connection lost on the way."""
    return type(cause).__name__ in ("ConnectError", "ConnectTimeout")
