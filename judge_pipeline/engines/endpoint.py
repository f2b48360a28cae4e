"""Any OpenAI-compatible endpoint, or several: typed failures, retries, and a concurrency that finds itself.

Each base URL has a client and a gate of its own. A prompt's calls go to one endpoint, chosen by a hash of the
prompt's id, so that its prefix cache keeps what it has read; only an endpoint that is out of order is left.

tenacity and stamina repeat a function; here each attempt takes its turn at a gate anew and may go to another endpoint,
a reply can be the failure, and every attempt's outcome moves the limit. What they would replace is `delay`, two lines.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import openai

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing, StopCalls
from judge_pipeline.engines.chat_protocol import (
    Dialect,
    MalformedReply,
    error_reply,
    identity_of,
    parse_completion,
    request_body,
)
from judge_pipeline.engines.concurrency import AdaptiveLimit, Gate, Permit
from judge_pipeline.engines.endpoint_errors import ErrorSaid, error_said, lasting_error, out_of_credit
from judge_pipeline.engines.lanes import Attempt, Lane, Lanes
from judge_pipeline.engines.retries import (
    OVERLOADED_STATUS,
    RETRIED_STATUS,
    Denied,
    FailedAttempt,
    OutOfCredit,
    RetryPolicy,
    retry_after,
)

KEY_HINT = "put the right key into the environment variable that --judge.api-key-env names"
DOUBTED_AFTER = 2
"""Attempts at one endpoint before it is asked whether it is there at all, where another could take over."""
ROOM_TO_THINK = 8192
"""Tokens beyond a reply's limit for a judge that was seen to think; a quarter of its window where that is less."""
FRESH_STARTS = 3
"""How often a call begins with new retries because the endpoint was down: it may be what brings it down."""


@dataclass
class _Tried:
    """What became of a call so far."""

    admitted: bool = False
    attempts: int = 0
    """Failed ones, since the last outage."""
    fresh_starts: int = 0
    away: int = 0
    """How many endpoints further than its home the call goes."""
    earlier: list[Reply] = field(default_factory=list)
    """What was answered, paid for and tried again."""

    def stopped(self, stop: StopCalls) -> Reply:
        """The failure that a call ends in when it may not be tried again; raises `stop` where nothing was paid yet."""
        if not self.earlier:
            raise stop
        return Reply(failure="stopped", detail=str(stop), finish_reason="error", earlier=self.earlier)


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
        patience_s: float = 900.0,
        extra_body: Mapping[str, Any] | None = None,
        dialect: Dialect | None = None,
        learnt: Callable[[str, Dialect], None] = lambda url, dialect: None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`learnt` is told the fields that an endpoint takes whenever its refusals have shown others."""
        self.model = model
        self.extra_body = dict(extra_body or {})
        self.identity = identity_of(model, self.extra_body)
        dialect = dialect or Dialect()
        self.supports_schema = dialect.schema != "off"
        self.context_window: int | None = None
        self._learnt = learnt
        self.timeout_s = timeout_s
        self.policy = policy or RetryPolicy()
        self._rng = random.Random(0)  # only spreads retries in time
        self.endpoints = [
            Lane(
                url.rstrip("/"),
                openai.AsyncOpenAI(
                    base_url=url, api_key=api_key, max_retries=0, timeout=timeout_s, default_headers=headers
                ),
                Gate(AdaptiveLimit(max_concurrency)),
                dialect,
            )
            for url in base_urls
        ]
        self._patience_s = patience_s
        self.lanes = Lanes(self.endpoints, self._post, self.policy, patience_s)

    def without_schema(self) -> None:
        """Ask for text alone: the endpoint does not hold answers to a JSON schema."""
        self.supports_schema = False
        for endpoint in self.endpoints:
            endpoint.dialect = replace(endpoint.dialect, schema="off")

    def only(self, lane: Lane) -> EndpointEngine:
        """The same engine, asking one endpoint alone."""
        one = copy.copy(self)
        one.endpoints = [lane]
        one.lanes = Lanes(one.endpoints, one._post, self.policy, self._patience_s)
        return one

    def _home(self, routing: Routing) -> int:
        digest = hashlib.sha256(routing.affinity.encode()).digest()
        return int.from_bytes(digest[:8], "big") % len(self.endpoints)

    def where(self, routing: Routing) -> str:
        """The base URL that such a call goes to."""
        return self.endpoints[self._home(routing)].url

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """Ask until there is an answer or the retries are used up; see `Engine.answer`."""
        home, tried = self._home(routing), _Tried()
        while True:
            try:
                lane = await self.lanes.choose(home + tried.away, routing)
            except StopCalls as stop:
                return tried.stopped(stop)
            # Whoever waits to try again goes first.
            async with lane.gate.permit(() if tried.admitted else routing.priority) as permit:
                if not lane.open:  # it went down while the call stood in line
                    continue
                try:
                    routing.admit()
                except StopCalls as stop:
                    return tried.stopped(stop)
                tried.admitted = True
                posted = time.monotonic()
                result = await self._post(lane, call)
                _tell(permit, call, result)
            if isinstance(result, Reply):
                lane.answered, lane.trouble = time.monotonic(), ""
                return result.model_copy(update={"earlier": tried.earlier})
            if isinstance(result, OutOfCredit):
                lane.spent = result.detail
            elif isinstance(result, FailedAttempt):
                if not await self._goes_on(tried, lane, posted, result):
                    return self._given_up(tried, result)
                if result.reply is not None:
                    tried.earlier.append(result.reply)
                    routing.paid(result.reply.usage)
            elif await self.lanes.fine(lane, posted):
                return result.failure.model_copy(update={"earlier": tried.earlier})

    async def _goes_on(self, tried: _Tried, lane: Lane, posted: float, failed: FailedAttempt) -> bool:
        """Whether to try once more; waits until it is time to."""
        tried.attempts += 1
        last = tried.attempts > self.policy.retries
        doubted = last or (tried.attempts == DOUBTED_AFTER and self.lanes.elsewhere(lane))
        if failed.outage and doubted and not await self.lanes.fine(lane, posted):
            tried.fresh_starts += 1
            tried.attempts = 0
            return tried.fresh_starts <= FRESH_STARTS
        if last:
            return False
        # The first retries stay home; an endpoint that fails a call again and again is worth losing its cache for.
        if failed.outage and not failed.overloaded and tried.attempts % DOUBTED_AFTER == 0:
            tried.away += 1
        await asyncio.sleep(self.policy.delay(tried.attempts - 1, failed.retry_after_s, self._rng))
        return True

    def _given_up(self, tried: _Tried, failed: FailedAttempt) -> Reply:
        detail = f"{failed.detail} (after {self.policy.retries + 1} attempts)"
        update = {"failure": failed.reason, "detail": detail, "earlier": tried.earlier}
        return (failed.reply or Reply()).model_copy(update=update)

    async def _post(self, lane: Lane, call: Call) -> Attempt:
        """One request, or more where the server wants it put differently.

        What a refusal teaches about the server is kept once a request put that way was answered.
        """
        started = time.perf_counter()
        dialect = asked_as = lane.dialect
        room = dialect.room or 0
        while True:
            body = dialect.applied(request_body(call, self.model, dialect.schema, room))
            try:
                # The client's timeout restarts with every byte; this one bounds the whole exchange. Raw text, because
                # the client's typed method would walk through every message twice (10 ms a call, measured).
                async with asyncio.timeout(self.timeout_s):
                    text: str = await lane.client.post(
                        "/chat/completions", body={**body, **self.extra_body}, cast_to=str
                    )
                reply = parse_completion(text, structured="response_format" in body)
            except MalformedReply as error:
                return FailedAttempt("http", str(error))
            except openai.APIStatusError as error:
                said = error_said(error).without(message.content for message in call.messages)
                if error.status_code in (400, 422):
                    known = error_reply(str(said))
                    if known is not None and known.failure == "context_too_long" and room:
                        room = 0  # a long prompt may leave no room to think, and can be answered all the same
                        continue
                    adapted = dialect.adapted(said, body) if known is None else None
                    if adapted is not None:
                        dialect = adapted
                        continue  # each change makes the body another one, and there are only so many
                return self._refusal(lane, error, said)
            except (openai.APITimeoutError, TimeoutError):
                return FailedAttempt("timeout", f"no answer within {self.timeout_s:g} s")
            except openai.APIConnectionError as error:
                return FailedAttempt("http", f"connection failed: {error.__cause__ or error!r}")
            if dialect.room is None and reply.usage.reasoning_tokens:
                dialect = replace(dialect, room=min(ROOM_TO_THINK, (self.context_window or 10**9) // 4))
            if dialect not in (lane.dialect, asked_as):  # else another call has learnt something meanwhile
                lane.dialect = dialect
                self._learnt(lane.url, dialect)
            reply = reply.model_copy(update={"latency_s": time.perf_counter() - started})
            empty = reply.failure == "empty_reply"
            return FailedAttempt("empty_reply", reply.detail, reply=reply) if empty else reply

    def _refusal(self, lane: Lane, error: openai.APIStatusError, said: ErrorSaid) -> Attempt:
        status = error.status_code
        detail = f"HTTP {status}: {str(said)[:300]}"
        if out_of_credit(status, said):
            return OutOfCredit(f"the account's quota is spent ({detail})")
        if status in RETRIED_STATUS:
            wait = retry_after(error.response.headers)
            return FailedAttempt("http", detail, status in OVERLOADED_STATUS, wait)
        known = error_reply(detail) if status in (400, 413, 422) else None
        failure = known or Reply(failure="http", detail=detail, finish_reason="error")
        lasting = lasting_error(status, said, lane.url, self.model, KEY_HINT)
        if lasting is None:
            return failure
        if status == 401:
            raise lasting
        return Denied(failure.model_copy(update={"failure": "refused" if status == 403 else "http"}), lasting)

    async def close(self) -> None:
        """Close all connections."""
        await self.lanes.close()


def _tell(permit: Permit, call: Call, result: Attempt) -> None:
    """Let the gate know how a request went."""
    reply = result if isinstance(result, Reply) else getattr(result, "reply", None)
    if reply is not None:
        permit.succeeded(call.template, reply.usage.output_tokens)
    elif isinstance(result, FailedAttempt) and (result.overloaded or result.reason == "timeout"):
        permit.overload(result.retry_after_s)
