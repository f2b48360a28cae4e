"""How many calls at a time: a limit that finds itself, and a gate that lets calls through in order.

`AdaptiveLimit` works in rounds of about one limit's worth of replies, and asks of each change of the limit what it did
to the work done a second (calls in flight over their latency, by Little's law). While more calls at a time mean more
work done, it grows: doubling at first, then by a square root a round. Where they only wait longer, which is all that a
queueing server such as a stock vLLM ever shows, it goes back, down to the fewest calls that keep the server busy, and
tries again later. Latency that rises by itself makes it shrink; refusals and timeouts halve it.

asyncio's semaphores and the rate limiters of PyPI keep a number that they are given, and let in whoever came first;
`Gate` lets callers in in the order that an engine's prefix cache wants.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

WORTHWHILE = 0.3
"""Growing by 10% must do at least this share of 10% more work a second; shrinking may cost no more than it."""
RISING = 1.5
"""Latency that rises by this factor under an unchanged limit means that the server has less to give."""
SHRINK, CUT = 0.8, 0.5
"""Factors on rising latency and on refusals or timeouts."""
FADING = 1.02
"""What counts as good latency is allowed to grow by this factor a round, so that a server may change for good."""
REST = 4
"""Rounds to stay where growing did not help before it is tried again."""
SMALLEST_ROUND = 10
SETTLING_TOKENS = 16
"""Added to a reply's length when latencies are compared, because reading the prompt takes time too."""


@dataclass
class Permit:
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


@dataclass(frozen=True)
class _Round:
    """What a round showed: how slow replies were under a limit."""

    limit: int
    stretch: float

    @property
    def work(self) -> float:
        """Work done a second, in units of one reply at the reference pace."""
        return self.limit / self.stretch


@dataclass
class AdaptiveLimit:
    """The number of calls to have in flight, from 1 to `ceiling`."""

    ceiling: int
    limit: float = 16.0
    era: int = 0
    """Counts changes of the limit: a reply says something about the limit only if its call began under it."""
    _growing_fast: bool = True
    _reference: dict[str, float] = field(default_factory=dict)
    """A usual pace of each kind of call, so that rounds with other kinds of calls can be compared."""
    _paces: list[tuple[str, float]] = field(default_factory=list)
    _busiest: int = 0
    _last: _Round | None = None
    _rest: int = 0
    _suspicious: bool = False
    _calm: float = math.inf
    """The smallest stretch of late."""
    _proven: int = 0
    """The highest limit under which latency was as good as ever."""

    def __post_init__(self) -> None:
        self.limit = min(self.limit, float(self.ceiling))

    @property
    def whole(self) -> int:
        """The limit as a number of calls."""
        return max(1, int(self.limit))

    def on_reply(self, permit: Permit, now: float, in_flight: int) -> None:
        """A call was answered; `in_flight` counts it too."""
        if permit.era != self.era:
            return
        pace = max(now - permit.started, 1e-9) / (permit.output_tokens + SETTLING_TOKENS)
        self._busiest = max(self._busiest, in_flight)
        self._paces.append((permit.kind or "", pace))
        enough = self.whole if self._growing_fast else max(SMALLEST_ROUND, self.whole)
        if len(self._paces) >= enough:
            self._end_round()

    def on_overload(self, permit: Permit) -> None:
        """A call was refused or not answered: halve, once for all calls that set out under the same limit."""
        if permit.era == self.era:
            self._growing_fast = False
            self._last = None
            self._proven = int(self.limit * CUT)
            self._set(self.limit * CUT)

    def _end_round(self) -> None:
        stretch = self._stretch()
        used = self._busiest >= 0.8 * self.whole
        self._paces, self._busiest = [], 0
        if not used:
            return  # with fewer calls in flight than allowed, nothing was found out about the limit
        before, self._last = self._last, _Round(self.whole, stretch)
        self._calm = min(stretch, self._calm * FADING)
        if stretch <= RISING * self._calm:
            self._proven = max(self._proven, self.whole)
        if before is None:
            self._grow()
        elif self.whole > before.limit:
            self._judge_growth(before, self._last)
        elif self.whole < before.limit:
            self._judge_shrinking(before, self._last)
        elif stretch > RISING * before.stretch:
            self._rose(before)
        elif self._rest:
            self._suspicious, self._rest = False, self._rest - 1
        else:
            self._suspicious = False
            self._grow()

    def _rose(self, before: _Round) -> None:
        """Latency rose by itself. One slow round is a hiccup, two are a server with less to give."""
        if not self._suspicious:
            self._suspicious, self._last = True, before
            return
        self._suspicious = self._growing_fast = False
        self._proven = int(self.limit * SHRINK)
        self._set(self.limit * SHRINK)

    def _stretch(self) -> float:
        """How slow this round's replies were, against each kind's reference pace."""
        known = [pace / self._reference[kind] for kind, pace in self._paces if kind in self._reference]
        stretch = statistics.median(known) if known else 1.0
        for kind in {kind for kind, _ in self._paces} - set(self._reference):
            # A kind that is new is taken to be as stretched now as the others are.
            self._reference[kind] = statistics.median(p for k, p in self._paces if k == kind) / stretch
        return stretch

    def _judge_growth(self, before: _Round, now: _Round) -> None:
        gained = (now.work / before.work - 1) / (now.limit / before.limit - 1)
        if gained >= WORTHWHILE:
            self._grow()
        else:
            self._growing_fast, self._rest = False, REST
            self._set(before.limit)

    def _judge_shrinking(self, before: _Round, now: _Round) -> None:
        lost = (1 - now.work / before.work) / (1 - now.limit / before.limit)
        if lost > 1 - WORTHWHILE:  # as much less work as calls: they had not been waiting for each other
            self._set(before.limit)
        elif lost < WORTHWHILE:
            self._set(self.limit * SHRINK)
        else:
            self._rest = REST

    def _grow(self) -> None:
        """One step up; at once to where the server is known to have been at ease."""
        step = self.limit * 2 if self._growing_fast else self.limit + math.sqrt(self.limit)
        self._set(max(step, self._proven))

    def _set(self, limit: float) -> None:
        before = self.whole
        self.limit = min(max(limit, 1.0), float(self.ceiling))
        if self.whole != before:
            self.era += 1
            self._paces, self._busiest = [], 0


Priority = tuple[str | int, ...]
"""Calls enter a gate smallest first: (template, document, prompt, answer)."""


class Gate:
    """Lets calls to one endpoint through: in order, as many at a time as the limit says, none during a pause."""

    def __init__(self, limit: AdaptiveLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.in_flight = 0
        self._clock = clock
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._paused_until = 0.0

    @asynccontextmanager
    async def permit(self, order: Priority = ()) -> AsyncIterator[Permit]:
        """Wait for leave to call; say on the permit how the call went before leaving."""
        if self._waiting or not self._open():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (order, next(self._count), turn))
            self._let_in()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # let in and cancelled at once: pass the turn on
                    self.in_flight -= 1
                    self._let_in()
                raise
        else:
            self.in_flight += 1
        permit = Permit(self._clock(), self.limit.era)
        try:
            yield permit
        finally:
            self._leave(permit)

    def _leave(self, permit: Permit) -> None:
        now = self._clock()
        if permit.overloaded:
            self.limit.on_overload(permit)
            self._paused_until = max(self._paused_until, now + permit.retry_after_s)
        elif permit.kind is not None:
            self.limit.on_reply(permit, now, self.in_flight)
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
