"""Runs calls: from the store if they are there, once if several want them, through the engine otherwise.

A reply is in the store before anyone sees it. Limits on calls and cost hold further calls back without losing any;
a run that is told to stop lets the calls in flight finish. Labelling asks as its plans go on; what judge baselines and
benchmarks ask is known from the start (`ask_all`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from judge_pipeline.calls.batch_book import BatchBook
from judge_pipeline.calls.call import Call, CallUsage, Reply
from judge_pipeline.calls.store import LASTING_FAILURES, Finished, Stored
from judge_pipeline.calls.writer import StoreWriter
from judge_pipeline.engines.base import DEFAULT_ROUTING, EndOfCalls, Engine, Routing, StopCalls

T = TypeVar("T")

MOST_TOKENS = 8192
"""Room that an answer may get, attempt by attempt, before it counts as cut for good."""


@dataclass(frozen=True)
class Prices:
    """Money per million tokens; None where the user did not say."""

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None

    def cost(self, usage: CallUsage) -> float | None:
        """What so many tokens cost; None without prices. Cached input costs the input price unless told."""
        if self.input is None and self.output is None:
            return None
        price_in, price_out = self.input or 0.0, self.output or 0.0
        cached_price = price_in if self.cached_input is None else self.cached_input
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        fresh = usage.input_tokens - cached
        return (fresh * price_in + cached * cached_price + usage.output_tokens * price_out) / 1e6


@dataclass
class Spent:
    """What this run has asked for so far."""

    made: int = 0
    written: int = 0
    """Calls that went into a batch file."""
    from_store: int = 0
    shared: int = 0
    failed: int = 0
    usage: CallUsage = field(default_factory=CallUsage)


@dataclass
class Budget:
    """When to stop asking: at so many calls, at so much money, or at once."""

    max_calls: int | None = None
    max_cost: float | None = None
    prices: Prices = Prices()
    spent: Spent = field(default_factory=Spent)
    stopped: str | None = None
    """Why no further call may begin; None while calls may."""
    in_flight: int = 0
    hurried: bool = False
    """The user wants the run to end now: what only waits for an endpoint to come back is given up."""

    def admit(self) -> None:
        """Take leave for one more call; raises StopCalls when there is none."""
        if self.stopped is None:
            enough = self.max_calls is not None and self.spent.made + self.spent.written >= self.max_calls
            self.stopped = f"--max-calls {self.max_calls} is reached" if enough else self._cost_reached()
        if self.stopped is not None:
            raise StopCalls(self.stopped)
        self.spent.made += 1
        self.in_flight += 1

    def admit_again(self) -> None:
        """Take leave for another attempt at a call; raises StopCalls when the money is spent."""
        told = self._cost_reached()
        if told is not None:
            self.stopped = self.stopped or told
            raise StopCalls(told)

    def _cost_reached(self) -> str | None:
        cost = self.prices.cost(self.spent.usage)
        if self.max_cost is None or cost is None:
            return None
        # Calls in flight will cost about what the others did: count them before they are over.
        done = self.spent.made - self.in_flight
        expected = cost + (self.in_flight * cost / done if done else 0.0)
        return f"--max-cost {self.max_cost:g} is reached" if expected >= self.max_cost else None

    def mailed(self) -> None:
        """A call that was admitted went into a batch file."""
        self.spent.made -= 1
        self.spent.written += 1

    def pay(self, usage: CallUsage) -> None:
        """An attempt has cost so much."""
        self.spent.usage += usage


class CallRunner:
    """Answers calls from the store or the engine; equal calls at one time are one call."""

    def __init__(
        self,
        engine: Engine,
        writer: StoreWriter,
        budget: Budget | None = None,
        *,
        retry_failed: bool = False,
        lasting: Collection[str] = LASTING_FAILURES,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        self.engine, self.writer = engine, writer
        self.budget = budget or Budget()
        self.retry_failed = retry_failed
        self.most_tokens = most_tokens
        """An answer that is cut is asked for again with twice the room, up to this many tokens."""
        self._book = BatchBook(writer.store)
        self._lasting: Collection[str] = () if retry_failed else lasting
        self._running: dict[str, asyncio.Task[Stored]] = {}
        self._made: set[str] = set()

    async def reply(
        self, call: Call, routing: Routing = DEFAULT_ROUTING, again: Collection[str] = ()
    ) -> Stored:
        """The reply to a call and the prompt it is counted for.

        `routing.affinity` names the prompt that asks. Keys in `again` are asked anew even though the store has an
        answer, which the new one replaces.
        """
        key = call.key(self.engine.identity)
        running = self._running.get(key)
        if running is not None:
            self.budget.spent.shared += 1
            return await asyncio.shield(running)
        renew = key in again and key not in self._made
        task = asyncio.create_task(self._fetch(key, call, routing, renew))
        self._running[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[Stored]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            # Seen, even when whoever asked is gone: the first error ended the run and is told once.
            task.exception()

    async def _fetch(self, key: str, call: Call, routing: Routing, renew: bool) -> Stored:
        store, asked_here = self.writer.store, key in self._made
        found = None if renew else store.find(key, self._lasting)
        if found is not None and self._room(call, found) > found.max_tokens > 0:
            found = None  # it was cut, and may have more room now
        if found is None and asked_here:  # what failed in this very run is not tried again in it
            found = store.last_failure(key)
        if found is None:
            return await self._from_engine(key, call, routing, renew)
        self.budget.spent.shared += asked_here
        self.budget.spent.from_store += not asked_here
        return found

    def _room(self, call: Call, last: Stored | None) -> int:
        """Tokens for the answer: as many as the call says, or twice what the last answer had that was cut."""
        room = call.sampling.max_tokens
        if last is None or last.reply.failure != "truncated":
            return room
        most, window = self.most_tokens, self.engine.context_window
        if window is not None:
            most = min(most, window - last.reply.usage.input_tokens)
        return max(room, min(2 * last.max_tokens, most))

    async def _from_engine(self, key: str, call: Call, routing: Routing, renew: bool) -> Stored:
        """Ask until the answer is not cut, or there is no more room to give it."""
        room = self._room(call, self.writer.store.last_failure(key))
        while True:
            file = self._book.waits_in(key)
            if file is not None:
                detail = f"waits for the answers to {Path(file).name}"
                return Stored(Reply(failure="pending", detail=detail), routing.affinity)
            more_than_asked = room > call.sampling.max_tokens
            stored = await self._ask(key, call.with_room(room), routing, renew, more_than_asked)
            before, room = room, self._room(call, stored)
            if stored.reply.failure != "truncated" or room <= before:
                return stored

    async def _ask(
        self, key: str, call: Call, routing: Routing, renew: bool, more_than_asked: bool
    ) -> Stored:
        """One question to the engine, its reply in the store. One that was cut stays so if the judge's window
        has no more room for it."""
        admitted = False

        def admit() -> None:
            nonlocal admitted
            self.budget.admit_again() if admitted else self.budget.admit()
            admitted = True

        try:
            asked = replace(routing, admit=admit, paid=self.budget.pay, hurried=lambda: self.budget.hurried)
            reply = await self.engine.answer(call, asked)
        except StopCalls as stop:
            if admitted and stop.reason == "pending":
                self.budget.mailed()
            if isinstance(stop, EndOfCalls):
                self.budget.stopped = self.budget.stopped or str(stop)
            return Stored(Reply(failure=stop.reason, detail=str(stop)), routing.affinity)
        finally:
            self.budget.in_flight -= admitted
        self.budget.pay(reply.usage)
        if more_than_asked and reply.failure == "context_too_long":
            detail = (
                f"cut at its token limit, and there is no room for {call.sampling.max_tokens}: {reply.detail}"
            )
            reply = reply.model_copy(update={"failure": "truncated", "detail": detail})
        finished = Finished(call, self.engine.identity, reply, self.engine.where(routing), routing.affinity)
        taken = await self.writer.put(finished, replace=renew)
        self._made.add(key)
        self.budget.spent.failed += reply.failure is not None
        # Another answer may have been first: what is used is what a later run will find.
        first = None if taken else self.writer.store.find(key)
        cut_at = call.sampling.max_tokens if reply.failure == "truncated" else 0
        usage = self.writer.store.lost(key) + (CallUsage() if reply.failure else reply.usage)
        return first or Stored(reply, routing.affinity, usage, cut_at)

    def cancel(self) -> None:
        """Let go of calls in flight."""
        for task in self._running.values():
            task.cancel()

    async def finish(self) -> None:
        """Wait for calls in flight, so that what was paid for is kept."""
        if self._running:
            await asyncio.gather(*self._running.values(), return_exceptions=True)


async def together(tasks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; on an error the others are let go at once instead of being left behind."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        return list(await asyncio.gather(*running))
    except BaseException:
        for task in running:
            task.cancel()
        raise
