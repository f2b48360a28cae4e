"""The threads of a labelling run, apart by what they do: slow work on one document never holds up the others' calls.

Cutting and embedding documents take seconds, each one document at a time: it is memory and processors they need, not
company. Steps of plans are quick, except those that search, which may wait for the embedding model; these have threads
of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar

T = TypeVar("T")

Work = Literal["cut", "embed", "search", "step"]
THREADS: dict[Work, int] = {"cut": 1, "embed": 1, "search": 2, "step": 2}


class Workers:
    """Runs functions in the threads for their kind of work, in the order they came."""

    def __init__(self) -> None:
        self._pools = {
            work: ThreadPoolExecutor(count, thread_name_prefix=work) for work, count in THREADS.items()
        }

    async def run(self, work: Work, function: Callable[..., T], *values: object) -> T:
        """The function's result."""
        return await asyncio.wrap_future(self.begin(work, function, *values))

    def begin(self, work: Work, function: Callable[..., T], *values: object) -> Future[T]:
        """Put the function in line."""
        return self._pools[work].submit(function, *values)

    def close(self) -> None:
        """Wait for what is under way; what has not begun is dropped."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools.values():
            pool.shutdown(wait=True)
