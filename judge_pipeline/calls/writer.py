"""Replies from an event loop to the call store: in groups, one disk flush for all that wait."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from judge_pipeline.calls.store import CallStore, Finished
from judge_pipeline.common.errors import UserError


class StoreWriter:
    """Takes replies from an event loop and commits them in groups: one disk flush for all that wait.

    `put` returns when the reply is on disk. One thread does the writing, so the loop never waits for a disk.
    """

    def __init__(self, store: CallStore) -> None:
        self.store = store
        self._waiting: list[tuple[Finished, bool, asyncio.Future[bool]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="call-store")
        self._task: asyncio.Task[None] | None = None

    async def put(self, finished: Finished, *, replace: bool = False) -> bool:
        """Store one reply durably; False when another answer was there first. Raises UserError when the disk is full."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((finished, replace, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())
        return await asyncio.shield(done)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                late = await loop.run_in_executor(self._thread, self._commit, group)
            except UserError as error:
                for _, _, done in group:
                    done.set_exception(error)
            else:
                for item, _, done in group:
                    done.set_result(not late or item.call.key(item.model) not in late)

    def _commit(self, group: list[tuple[Finished, bool, asyncio.Future[bool]]]) -> set[str]:
        late: set[str] = set()
        for replace in (False, True):
            finished = [item for item, flag, _ in group if flag is replace]
            if finished:
                late |= self.store.put(finished, replace=replace)
        return late

    async def close(self) -> None:
        """Wait for everything under way to be on disk."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()
