"""The local engine's front: calls from many tasks, gathered into batches that begin alike, answered by one thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from judge_pipeline.calls.call import Call, Reply, context_too_long
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing, StopCalls

if TYPE_CHECKING:
    from judge_pipeline.engines.local_generation import TransformersJudge

GATHER_S = 0.02
"""How long to wait for more calls when there is work for less than a full batch."""


@dataclass(order=True)
class _Waiting:
    priority: tuple[str | int, ...]
    call: Call = field(compare=False)
    routing: Routing = field(compare=False)
    reply: asyncio.Future[Reply] = field(compare=False)


class LocalEngine:
    """Answers calls with a model in this process."""

    supports_schema: bool = True

    def __init__(self, judge: TransformersJudge, *, batch_size: int = 8, batch_tokens: int = 32768) -> None:
        self.judge = judge
        self.model = self.identity = judge.name
        self.encode = judge.encode
        self.context_window = judge.context_window
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")
        self._worker: asyncio.Task[None] | None = None

    def where(self, routing: Routing) -> str:
        """In this process."""
        return "local"

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """Wait for the call's batch; see `Engine.answer`."""
        item = _Waiting(routing.priority, call, routing, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await item.reply

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await self._gather()
            batch = self._next_batch()
            if not batch:
                continue
            try:
                replies = await loop.run_in_executor(
                    self._thread, self._answer, [item.call for item in batch]
                )
            except BaseException as error:
                for item in batch:
                    if not item.reply.done():
                        item.reply.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for item, reply in zip(batch, replies, strict=True):
                if not item.reply.done():
                    item.reply.set_result(reply)

    async def _gather(self) -> None:
        """Until a batch is full or nobody new comes: a batch once begun takes no one in."""
        before = -1
        while before < len(self._waiting) < 4 * self.batch_size:
            before = len(self._waiting)
            await asyncio.sleep(GATHER_S)

    def _next_batch(self) -> list[_Waiting]:
        """The first calls in order, of one template: they share a beginning."""
        self._waiting = sorted(item for item in self._waiting if not item.reply.done())
        batch: list[_Waiting] = []
        rest: list[_Waiting] = []
        for item in self._waiting:
            fits = len(batch) < self.batch_size and (
                not batch or item.call.template == batch[0].call.template
            )
            if not fits:
                rest.append(item)
                continue
            try:
                item.routing.admit()
            except StopCalls as stop:
                item.reply.set_exception(stop)
            else:
                batch.append(item)
        self._waiting = rest
        return batch

    def _answer(self, calls: list[Call]) -> list[Reply]:
        """In the worker thread: check lengths, split by memory, answer."""
        prompts = [self.judge.encode(call) for call in calls]
        replies: dict[int, Reply] = {}
        groups: list[list[int]] = []
        tokens = 0
        for index, (call, prompt) in enumerate(zip(calls, prompts, strict=True)):
            if (failed := context_too_long(call, len(prompt), self.context_window)) is not None:
                replies[index] = failed
                continue
            need = len(prompt) + call.sampling.max_tokens
            if not groups or tokens + need > self.batch_tokens:
                groups.append([])
                tokens = 0
            groups[-1].append(index)
            tokens += need
        for group in groups:
            answers = self.judge.answer([calls[i] for i in group], [prompts[i] for i in group])
            replies.update(zip(group, answers, strict=True))
        return [replies[index] for index in range(len(calls))]

    async def close(self) -> None:
        """Wait for the batch at work, then let the thread go."""
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown(wait=True)
