"""Several endpoints, each a lane: which one a call takes, and what happens when one is out of order.

A call that has failed with all its retries may be at fault itself, or its endpoint may be down. A harmless call, asked
once for all who doubt, tells the two apart. An endpoint that does not answer it either is down: no call goes there, it
is looked at again after ever longer pauses, and its calls take another lane or wait, without a retry being counted.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import openai

from judge_pipeline.calls.call import Call, Message, Reply, Sampling
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.formatting import format_seconds
from judge_pipeline.engines.base import EndOfCalls, Routing, StopCalls
from judge_pipeline.engines.chat_protocol import Dialect
from judge_pipeline.engines.concurrency import Gate
from judge_pipeline.engines.retries import Denied, FailedAttempt, OutOfCredit, RetryPolicy

POLL_S = 0.25
"""How often a call that waits for an endpoint looks whether one is there again."""

Attempt = Reply | FailedAttempt | Denied | OutOfCredit
"""What comes of one request."""

HARMLESS = Call(
    template="harmless",
    messages=(Message(role="user", content="Reply with the word yes."),),
    sampling=Sampling(max_tokens=16),
)
"""A call without any content of the run: whoever answers nothing else but errors to it is out of order."""


@dataclass(eq=False)
class Lane:
    """One base URL."""

    url: str
    client: openai.AsyncOpenAI
    gate: Gate
    dialect: Dialect
    answered: float = -math.inf
    """When it last answered a call (`time.monotonic`)."""
    trouble: str = ""
    """What comes back while it is down."""
    since: float = 0.0
    """When it went down."""
    spent: str = ""
    """How it said that there is no credit left: it is asked nothing more in this run."""
    looking: asyncio.Task[bool] | None = None
    watching: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """It may be asked."""
        return not self.trouble and not self.spent


class Lanes:
    """All lanes of an engine. `ask` makes one request; `patience_s` is how long all of them may be down."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        ask: Callable[[Lane, Call], Awaitable[Attempt]],
        policy: RetryPolicy,
        patience_s: float,
    ) -> None:
        self._lanes, self._ask = lanes, ask
        self._policy, self._patience_s = policy, patience_s

    async def choose(self, start: int, routing: Routing) -> Lane:
        """The first open lane, counted from `start`; waits for one where all are down.

        Raises UserError when patience ends, EndOfCalls when no credit is left, StopCalls when the user will not wait.
        """
        count = len(self._lanes)
        while True:
            lanes = [self._lanes[(start + step) % count] for step in range(count)]
            if (lane := next((lane for lane in lanes if lane.open), None)) is not None:
                return lane
            waiting = [lane for lane in lanes if not lane.spent]
            if not waiting:
                raise EndOfCalls("; ".join(sorted(f"{lane.url}: {lane.spent}" for lane in lanes)))
            down_s = time.monotonic() - max(lane.since for lane in waiting)
            if down_s >= self._patience_s:
                told = "; ".join(f"{lane.url}: {lane.trouble}" for lane in waiting)
                raise UserError(
                    f"the endpoint is gone: nothing else for {format_seconds(down_s)} from {told}",
                    "everything finished is kept; start the endpoint and run the same command again "
                    "(--judge.patience says how long to wait for it)",
                )
            if routing.hurried():
                raise StopCalls("interrupted")
            await asyncio.sleep(POLL_S)

    def elsewhere(self, lane: Lane) -> bool:
        """Whether a call could take another lane."""
        return any(other.open for other in self._lanes if other is not lane)

    async def fine(self, lane: Lane, since: float) -> bool:
        """Whether a lane answers: it has done so `since`, or does it now for a harmless call.

        Raises UserError when it denies the harmless call too.
        """
        if lane.answered > since:
            return True
        if lane.open:
            if lane.looking is None or lane.looking.done():
                lane.looking = asyncio.create_task(self._look(lane))
            await asyncio.shield(lane.looking)
        return lane.open

    async def _look(self, lane: Lane) -> bool:
        """Ask a harmless call; whether the lane is open afterwards."""
        result = await self._ask(lane, HARMLESS)
        if isinstance(result, Denied):
            raise result.lasting
        if isinstance(result, OutOfCredit):
            lane.spent = result.detail
        elif isinstance(result, FailedAttempt) and result.outage:
            self.down(lane, result.detail)
        else:
            lane.answered, lane.trouble = time.monotonic(), ""
        return lane.open

    def down(self, lane: Lane, trouble: str) -> None:
        """Send no call to a lane until it answers again."""
        if not lane.trouble:
            lane.since = time.monotonic()
        lane.trouble = trouble
        if lane.watching is None or lane.watching.done():
            lane.watching = asyncio.create_task(self._watch(lane))

    async def _watch(self, lane: Lane) -> None:
        times = 0
        while lane.trouble and not lane.spent:
            pause = self._policy.look_again(times)
            if times == 1:  # a moment's trouble is not worth a word
                others = "other endpoints take over" if self.elsewhere(lane) else "calls wait"
                limit = format_seconds(self._patience_s)
                _say(
                    f"{lane.url} is out of order ({lane.trouble[:200]}): {others}, for up to {limit} if none answers"
                )
            await asyncio.sleep(pause)
            times += 1
            try:
                await self._look(lane)
            except UserError as error:  # it is back, but not as it was: whoever waits hears that in the end
                lane.trouble = error.message
        if times > 1:
            _say(f"{lane.url} {'is out of credit' if lane.spent else 'answers again'}")

    async def close(self) -> None:
        """Stop watching, close all connections."""
        tasks = [task for lane in self._lanes for task in (lane.looking, lane.watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes:
            await lane.client.close()


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)
