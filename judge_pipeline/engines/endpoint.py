"""Any OpenAI-compatible endpoint, or several: typed failures, retries, and a concurrency that finds itself.

Each base URL has a client and a gate of its own. A prompt's calls go to one endpoint, chosen by a hash of the
prompt's id, so that its prefix cache keeps what it has read; only an endpoint that cannot be reached is left.

tenacity and stamina repeat a function; here each attempt takes its turn at a gate anew and may go to another endpoint,
a reply can be the failure, and every attempt's outcome moves the limit. What they would replace is `delay`, two lines.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from judge_pipeline.calls.call import Call, FailureReason, Message, Reply, Sampling
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing, StopCalls
from judge_pipeline.engines.chat_protocol import (
    Dialect,
    MalformedReply,
    error_reply,
    identity_of,
    inside,
    parse_completion,
    request_body,
)
from judge_pipeline.engines.concurrency import AdaptiveLimit, Gate
from judge_pipeline.engines.endpoint_errors import lasting_error, message_of, unanswered

KEY_HINT = "put the right key into the environment variable that --judge.api-key-env names"
GONE_AFTER = 12
"""This many calls in a row that found no server at all, each after all its retries, end the run."""
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
OVERLOADED_STATUS = frozenset({429, 503, 529})
LONGEST_RETRY_AFTER_S = 600.0


@dataclass(frozen=True)
class FailedAttempt:
    """One attempt failed in a way that may pass."""

    reason: FailureReason
    detail: str
    overloaded: bool = False
    retry_after_s: float = 0.0
    unreachable: bool = False
    """No connection at all: another endpoint may do better."""
    reply: Reply | None = None
    """What came back, if anything did: its tokens were paid for."""


@dataclass(frozen=True)
class RetryPolicy:
    """How patient to be."""

    retries: int = 5
    base_s: float = 0.5
    longest_s: float = 30.0

    def delay(self, attempt: int, retry_after_s: float, rng: random.Random) -> float:
        """Seconds before attempt number `attempt` + 1 (from 0): full jitter, never sooner than the server asks."""
        return retry_after_s + rng.uniform(0, min(self.longest_s, self.base_s * 2**attempt))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float:
    """Seconds the server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date; 0 if unsaid."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    seconds = 0.0
    try:
        seconds = float(value or 0) if milliseconds is None else float(milliseconds) / 1000
    except ValueError:
        date = email.utils.parsedate_tz(value or "")
        if date is not None:
            seconds = email.utils.mktime_tz(date) - (time.time() if now is None else now)
    if seconds != seconds:  # "nan" is a float too
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


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
    """Answers calls over HTTP; `check_endpoint` looks first whether it can."""

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
        dialect: Dialect | None = None,
    ) -> None:
        self.model = model
        self.extra_body = dict(extra_body or {})
        self.identity = identity_of(model, self.extra_body)
        dialect = dialect or Dialect()
        self.supports_schema = dialect.schema != "off"
        self.context_window: int | None = None
        self.timeout_s = timeout_s
        self.policy = policy or RetryPolicy()
        self._rng = random.Random(0)  # only spreads retries in time
        self.endpoints = [
            Endpoint(
                url.rstrip("/"),
                openai.AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=timeout_s),
                Gate(AdaptiveLimit(max_concurrency)),
                Dialect(dialect.schema, dict(dialect.renamed), set(dialect.dropped)),
            )
            for url in base_urls
        ]

    def without_schema(self) -> None:
        """Ask for text alone: the endpoint does not hold answers to a JSON schema."""
        self.supports_schema = False
        for endpoint in self.endpoints:
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
        failed = FailedAttempt("http", "not tried")
        earlier: list[Reply] = []
        for attempt in range(self.policy.retries + 1):
            # The first retries stay home; an endpoint that is really gone is worth losing its cache for.
            away = attempt // 2 if failed.unreachable else 0
            endpoint = self.endpoints[(home + away) % len(self.endpoints)]
            # Whoever waits to try again goes first.
            async with endpoint.gate.permit(() if attempt else routing.priority) as permit:
                try:
                    routing.admit()
                except StopCalls as stop:
                    if not attempt:
                        raise
                    return Reply(failure="stopped", detail=str(stop), finish_reason="error", earlier=earlier)
                result = await self._post(endpoint, call)
                reply = result if isinstance(result, Reply) else result.reply
                if reply is not None:
                    permit.succeeded(call.template, reply.usage.output_tokens)
                elif isinstance(result, FailedAttempt) and (result.overloaded or result.reason == "timeout"):
                    permit.overload(result.retry_after_s)
            if isinstance(result, Reply):
                endpoint.unreached = 0
                return result.model_copy(update={"earlier": earlier})
            failed = result
            if attempt < self.policy.retries:
                if failed.reply is not None:
                    earlier.append(failed.reply)
                    routing.paid(failed.reply.usage)
                await asyncio.sleep(self.policy.delay(attempt, failed.retry_after_s, self._rng))
        endpoint.unreached = endpoint.unreached + 1 if failed.unreachable else 0
        if all(endpoint.unreached >= GONE_AFTER for endpoint in self.endpoints):
            raise UserError(
                f"the endpoint {endpoint.url} is gone: {failed.detail}",
                "everything finished is kept; start the endpoint and run the same command again",
            )
        detail = f"{failed.detail} (after {self.policy.retries + 1} attempts)"
        update = {"failure": failed.reason, "detail": detail, "earlier": earlier}
        return (failed.reply or Reply()).model_copy(update=update)

    async def _post(self, endpoint: Endpoint, call: Call) -> Reply | FailedAttempt:
        """One request, or more where the server wants it put differently."""
        started = time.perf_counter()
        while True:
            body = endpoint.dialect.applied(request_body(call, self.model, endpoint.dialect.schema))
            try:
                # The client's timeout restarts with every byte; this one bounds the whole exchange. Raw text, because
                # the client's typed method would walk through every message twice (10 ms a call, measured).
                async with asyncio.timeout(self.timeout_s):
                    text: str = await endpoint.client.post(
                        "/chat/completions", body={**body, **self.extra_body}, cast_to=str
                    )
                reply = parse_completion(text, structured="response_format" in body)
            except MalformedReply as error:
                return FailedAttempt("http", str(error))
            except openai.APIStatusError as error:
                message = message_of(error)
                adaptable = error.status_code in (400, 422) and error_reply(message) is None
                if adaptable and endpoint.dialect.adapt(message, body):
                    continue  # each change makes the body another one, and there are only so many
                return self._refusal(endpoint, error)
            except (openai.APITimeoutError, TimeoutError):
                return FailedAttempt("timeout", f"no answer within {self.timeout_s:g} s")
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                # Nobody there at all, as opposed to a connection lost on the way.
                nobody = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
                return FailedAttempt("http", f"connection failed: {cause!r}", unreachable=nobody)
            reply = reply.model_copy(update={"latency_s": time.perf_counter() - started})
            empty = reply.failure == "empty_reply"
            return FailedAttempt("empty_reply", reply.detail, reply=reply) if empty else reply

    def _refusal(self, endpoint: Endpoint, error: openai.APIStatusError) -> Reply | FailedAttempt:
        status = error.status_code
        detail = f"HTTP {status}: {message_of(error)[:300]}"
        lasting = lasting_error(error, endpoint.url, self.model, KEY_HINT)
        if lasting is not None:
            raise lasting
        if status in RETRIED_STATUS:
            wait = retry_after(error.response.headers)
            return FailedAttempt("http", detail, status in OVERLOADED_STATUS, wait)
        known = error_reply(detail) if status in (400, 413, 422) else None
        return known or Reply(failure="http", detail=detail, finish_reason="error")

    async def close(self) -> None:
        """Close all connections."""
        for endpoint in self.endpoints:
            await endpoint.client.close()


PROBE = Call(
    template="probe",
    messages=(Message(role="user", content="Reply with a JSON object whose field `ok` is true."),),
    sampling=Sampling(max_tokens=32),
    json_schema={
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    },
)
"""One tiny call that shows whether an endpoint holds answers to a JSON schema."""


async def check_endpoint(engine: EndpointEngine, *, attempts: int = 3) -> None:
    """Check that every endpoint is there, takes the key and knows the model; take its context window.

    A run that would fail on every call fails here, in a second. Raises UserError with the way out.
    """
    model, endpoints = engine.model, engine.endpoints
    listed = await asyncio.gather(*(_models(one.client, one.url, model, attempts) for one in endpoints))
    windows = [_window(one.url, model, models) for one, models in zip(endpoints, listed, strict=True)]
    engine.context_window = min((window for window in windows if window is not None), default=None)


async def single_model(base_url: str, api_key: str) -> str:
    """The model to use when none was named: the only one an endpoint serves."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
        names = sorted(await _models(client, base_url, "", attempts=2))
    if len(names) != 1:
        raise UserError("--judge.model is not given", f"{base_url} knows: {', '.join(names) or 'none'}")
    return names[0]


async def _models(client: openai.AsyncOpenAI, url: str, model: str, attempts: int) -> dict[str, Any]:
    """What an endpoint says of each model it serves; nothing where it has no such list."""
    for attempt in range(attempts):
        try:
            response = await client.models.with_raw_response.list(timeout=20.0)
            return _entries(url, response.http_response.text)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise lasting_error(error, url, model, KEY_HINT) or error from error
        except openai.APIConnectionError as error:
            problem = unanswered(url, error)
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code != 429:
                return {}  # the first call will tell
            problem = UserError(f"the endpoint {url} is in trouble: HTTP {error.status_code}")
        if attempt + 1 < attempts:
            await asyncio.sleep(0.5 * 2**attempt)
    raise problem


def _entries(url: str, text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{url}/models does not answer with JSON but with {text[:80]!r}",
            "is --judge.base-url an OpenAI-compatible API (it usually ends in /v1)?",
        ) from error
    entries = inside(body, "data")
    listed = entries if isinstance(entries, list) else []
    return {str(entry.get("id")): entry for entry in listed if isinstance(entry, dict)}


def _window(url: str, model: str, models: dict[str, Any]) -> int | None:
    if models and model not in models:
        names = sorted(models)
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise UserError(f"{url} does not know the model '{model}'", f"it knows: {listed}")
    window = inside(models, model, "max_model_len")
    return window if isinstance(window, int) and window > 0 else None


async def probe_schema(engine: EndpointEngine) -> bool:
    """Whether the endpoint holds an answer to a JSON schema, found out with one tiny call."""
    reply = await engine.answer(PROBE)
    try:
        ok = inside(json.loads(reply.text), "ok")
    except ValueError:
        return False
    return reply.structured and reply.failure is None and isinstance(ok, bool)
