"""Any OpenAI-compatible endpoint, or several: typed failures, retries, and a concurrency that finds itself.

Each base URL has a client and a gate of its own. A prompt's calls go to one endpoint, chosen by a hash of the
prompt's id, so that its prefix cache keeps what it has read; only an endpoint that cannot be reached is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing
from judge_pipeline.engines.chat_protocol import (
    MalformedReply,
    error_reply,
    identity_of,
    parse_completion,
    request_body,
)
from judge_pipeline.engines.concurrency import AdaptiveLimit, Gate, Permit
from judge_pipeline.engines.dialect import Dialect
from judge_pipeline.engines.endpoint_errors import lasting_error, message_of
from judge_pipeline.engines.retries import (
    OVERLOADED_STATUS,
    RETRIED_STATUS,
    FailedAttempt,
    RetryPolicy,
    retry_after,
)

KEY_HINT = "put the right key into the environment variable that --judge.api-key-env names"
GONE_AFTER = 12
"""This many calls in a row that found no server at all, each after all its retries, end the run."""


@dataclass
class Endpoint:
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
        self.context_window: int | None = None
        self.timeout_s = timeout_s
        self.policy = policy or RetryPolicy()
        self.max_concurrency = max_concurrency
        self._rng = random.Random(0)  # only spreads retries in time
        self.endpoints = [
            Endpoint(
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
        for endpoint in self.endpoints:
            if not able:
                endpoint.dialect.schema = "off"

    def _home(self, routing: Routing) -> int:
        digest = hashlib.sha256(routing.affinity.encode()).digest()
        return int.from_bytes(digest[:8], "big") % len(self.endpoints)

    def where(self, routing: Routing) -> str:
        """The base URL that such a call goes to."""
        return self.endpoints[self._home(routing)].url

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """Ask until there is an answer or the retries are used up; see `Engine.answer`."""
        home = self._home(routing)
        admitted = False
        failed = FailedAttempt("http", "not tried")
        for attempt in range(self.policy.retries + 1):
            # The first retries stay home; an endpoint that is really gone is worth losing its cache for.
            away = attempt // 2 if failed.unreachable else 0
            endpoint = self.endpoints[(home + away) % len(self.endpoints)]
            order = routing.priority if not admitted else ()  # whoever waits to try again goes first
            async with endpoint.gate.permit(order) as permit:
                if not admitted:
                    routing.admit()
                    admitted = True
                result = await self._attempt(endpoint, call, permit)
            if isinstance(result, Reply):
                endpoint.unreached = 0
                return result
            failed = result
            if attempt < self.policy.retries:
                await asyncio.sleep(self.policy.delay(attempt, failed.retry_after_s, self._rng))
        self._note_unreached(endpoint, failed)
        detail = f"{failed.detail} (after {self.policy.retries + 1} attempts)"
        return (failed.reply or Reply()).model_copy(update={"failure": failed.reason, "detail": detail})

    def _note_unreached(self, endpoint: Endpoint, failed: FailedAttempt) -> None:
        endpoint.unreached = endpoint.unreached + 1 if failed.unreachable else 0
        if all(endpoint.unreached >= GONE_AFTER for endpoint in self.endpoints):
            raise UserError(
                f"the endpoint {endpoint.url} is gone: {failed.detail}",
                "everything finished is kept; start the endpoint and run the same command again",
            )

    async def _attempt(self, endpoint: Endpoint, call: Call, permit: Permit) -> Reply | FailedAttempt:
        """One request (two if the server wants it put differently)."""
        result = await self._post(endpoint, call)
        if isinstance(result, FailedAttempt):
            if result.overloaded or result.reason == "timeout":
                permit.overload(result.retry_after_s)
            return result
        permit.succeeded(call.template, result.usage.output_tokens)
        if result.failure == "empty_reply":
            return FailedAttempt("empty_reply", result.detail, reply=result)
        return result

    async def _post(self, endpoint: Endpoint, call: Call) -> Reply | FailedAttempt:
        started = time.perf_counter()
        while True:
            body = endpoint.dialect.applied(request_body(call, self.model, endpoint.dialect.schema))
            try:
                text = await self._send(endpoint, body)
                reply = parse_completion(text, structured="response_format" in body)
                return reply.model_copy(update={"latency_s": time.perf_counter() - started})
            except MalformedReply as error:
                return FailedAttempt("http", str(error))
            except openai.APIStatusError as error:
                message = message_of(error)
                about_call = error_reply(message) is not None
                if (
                    error.status_code in (400, 422)
                    and not about_call
                    and endpoint.dialect.adapt(message, body)
                ):
                    continue  # each change makes the body another one, and there are only so many
                return self._refusal(endpoint, error)
            except (openai.APITimeoutError, TimeoutError):
                return FailedAttempt("timeout", f"no answer within {self.timeout_s:g} s")
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                return FailedAttempt(
                    "http", f"connection failed: {cause!r}", unreachable=_refused_connection(cause)
                )

    async def _send(self, endpoint: Endpoint, body: dict[str, Any]) -> str:
        """POST as raw text: what comes back is judged by us, not by the client's models.

        The client's typed method would walk through every message twice (10 ms a call, measured); `post` does not.
        """
        # The client's timeout restarts with every byte; this one bounds the whole exchange.
        async with asyncio.timeout(self.timeout_s):
            text: str = await endpoint.client.post(
                "/chat/completions", body={**body, **self.extra_body}, cast_to=str
            )
            return text

    def _refusal(self, endpoint: Endpoint, error: openai.APIStatusError) -> Reply | FailedAttempt:
        status, message = error.status_code, message_of(error)
        detail = f"HTTP {status}: {message[:300]}"
        lasting = lasting_error(error, endpoint.url, self.model, KEY_HINT)
        if lasting is not None:
            raise lasting
        if status in RETRIED_STATUS:
            return FailedAttempt(
                "http", detail, status in OVERLOADED_STATUS, retry_after(error.response.headers)
            )
        known = error_reply(detail) if status in (400, 413, 422) else None
        if known is not None:
            return known
        return Reply(failure="http", detail=detail, finish_reason="error")

    async def close(self) -> None:
        """Close all connections."""
        for endpoint in self.endpoints:
            await endpoint.client.close()


def _refused_connection(cause: BaseException) -> bool:
    """Nobody there at all, as opposed to a connection lost on the way."""
    return type(cause).__name__ in ("ConnectError", "ConnectTimeout")
