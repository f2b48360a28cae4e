"""How many calls at a time: a limit that finds itself, and a gate that lets calls through in order.

`AdaptiveLimit` is pure: it is told what happened and when, and holds a number. It works in rounds of about one
limit's worth of replies. As long as replies take no longer than they did at the best of times, or as long as
more calls at a time still mean more work done (a batching server slows every call a little and does more in
all), it grows: doubling at first, then by a square root a round. When more calls at a time only wait longer, which
is all a queueing server such as a stock vLLM ever shows, it shrinks. Refusals and timeouts halve it.

`Gate` puts it to work for one endpoint: callers wait in a heap and enter in the order they ask for, which is the
order an engine's prefix cache wants.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HEALTHY_STRETCH = 1.3
"""Replies up to this many times slower than the best count as healthy."""
WORTHWHILE_GAIN = 1.05
"""Above a healthy latency, the limit grows only while work done a second still rises by this factor."""
SHRINK, CUT = 0.8, 0.5
"""Factors on rising latency and on refusals or timeouts."""
MEMORY = 0.98
"""The best latency and the best throughput fade by this factor a round, so that a server may change."""
SETTLING_TOKENS = 16
"""Added to a reply's length when latencies are compared, because reading the prompt takes time too."""


@dataclass
class Slot:
    """Leave to make one call: taken at `started` seconds, when the limit was in its `era`-th state."""

    started: float
    era: int
    overloaded: bool = False
    retry_after_s: float = 0.0
    kind: str | None = None
    output_tokens: int = 0

    def succeeded(self, kind: str, output_tokens: int) -> None:
        """The call was answered. Latencies are compared among calls of one `kind` (the template)."""
        self.kind, self.output_tokens = kind, output_tokens

    def overload(self, retry_after_s: float = 0.0) -> None:
        """The server said it has too much to do (429, 503) or did not answer in time."""
        self.overloaded, self.retry_after_s = True, retry_after_s


@dataclass
class AdaptiveLimit:
    """The number of calls to have in flight, from 1 to `ceiling`."""

    ceiling: int
    limit: float = 4.0
    era: int = 0
    """Counts changes of the limit: a reply says something about the limit only if its call began under it."""
    _growing_fast: bool = True
    _best_pace: dict[str, float] = field(default_factory=dict)
    _best_throughput: float = 0.0
    _stretches: list[float] = field(default_factory=list)
    _busiest: int = 0

    def __post_init__(self) -> None:
        self.limit = min(self.limit, float(self.ceiling))

    @property
    def whole(self) -> int:
        """The limit as a number of calls."""
        return max(1, int(self.limit))

    def on_reply(self, slot: Slot, now: float, in_flight: int) -> None:
        """A call was answered; `in_flight` counts it too."""
        kind = slot.kind or ""
        pace = max(now - slot.started, 1e-9) / (slot.output_tokens + SETTLING_TOKENS)
        best = self._best_pace[kind] = min(pace, self._best_pace.get(kind, pace))
        if slot.era != self.era:
            return
        self._busiest = max(self._busiest, in_flight)
        self._stretches.append(pace / best)
        if len(self._stretches) >= max(4, self.whole):
            self._end_round()

    def on_overload(self, slot: Slot) -> None:
        """A call was refused or not answered: halve, once for all calls that set out under the same limit."""
        if slot.era == self.era:
            self._growing_fast = False
            self._set(self.limit * CUT)

    def _end_round(self) -> None:
        stretch = sorted(self._stretches)[len(self._stretches) // 2]
        used = self._busiest >= 0.8 * self.whole
        self._stretches, self._busiest = [], 0
        throughput = self.whole / stretch
        healthy = stretch <= HEALTHY_STRETCH
        worthwhile = throughput >= WORTHWHILE_GAIN * self._best_throughput
        self._best_pace = {kind: pace / MEMORY for kind, pace in self._best_pace.items()}
        if used:
            self._best_throughput = max(throughput, self._best_throughput * MEMORY)
        if healthy or worthwhile:
            if used:  # with fewer calls than allowed in flight, nothing was learnt about more
                self._set(self.limit * 2 if self._growing_fast else self.limit + math.sqrt(self.limit))
        else:
            self._growing_fast = False
            self._set(self.limit * SHRINK)

    def _set(self, limit: float) -> None:
        before = self.whole
        self.limit = min(max(limit, 1.0), float(self.ceiling))
        if self.whole != before:
            self.era += 1
            self._stretches, self._busiest = [], 0


Order = tuple[str | int, ...]
"""Calls enter a gate smallest first: (template, prompt, answer)."""


class Gate:
    """Lets calls to one endpoint through: in order, as many at a time as the limit says, none during a pause."""

    def __init__(self, limit: AdaptiveLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.in_flight = 0
        self._clock = clock
        self._waiting: list[tuple[Order, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._paused_until = 0.0

    @asynccontextmanager
    async def slot(self, order: Order = ()) -> AsyncIterator[Slot]:
        """Wait for leave to call; say on the slot how the call went before leaving."""
        if self._waiting or not self._open():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (order, next(self._count), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # let in and cancelled at once: pass the turn on
                    self.in_flight -= 1
                    self._let_in()
                raise
        else:
            self.in_flight += 1
        slot = Slot(self._clock(), self.limit.era)
        try:
            yield slot
        finally:
            self._leave(slot)

    def _leave(self, slot: Slot) -> None:
        now = self._clock()
        if slot.overloaded:
            self.limit.on_overload(slot)
            self._paused_until = max(self._paused_until, now + slot.retry_after_s)
        elif slot.kind is not None:
            self.limit.on_reply(slot, now, self.in_flight)
        self.in_flight -= 1
        self._let_in()

    def _open(self) -> bool:
        return self.in_flight < self.limit.whole and self._clock() >= self._paused_until

    def _let_in(self) -> None:
        while self._waiting and self._open():
            turn = heapq.heappop(self._waiting)[2]
            if not turn.cancelled():
                self.in_flight += 1
                turn.set_result(None)
        pause = self._paused_until - self._clock()
        if self._waiting and pause > 0:
            asyncio.get_running_loop().call_later(pause, self._let_in)
