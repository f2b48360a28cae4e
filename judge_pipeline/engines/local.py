"""The local engine's front: calls from many tasks, gathered into batches that begin alike, answered by one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from judge_pipeline.calls.call import Call, Reply, over_window
from judge_pipeline.engines.base import ANYWHERE, Place, StopCalls

GATHER_S = 0.02
"""How long to wait for more calls when there is work for less than a full batch."""


class BatchJudge(Protocol):
    """What the front drives: tokens of a call, and answers to a batch."""

    name: str
    context_window: int | None

    def encode(self, call: Call) -> list[int]:
        """The prompt's tokens."""
        ...

    def answer(self, calls: Sequence[Call], prompts: Sequence[list[int]]) -> list[Reply]:
        """Replies, in order."""
        ...


@dataclass(order=True)
class _Waiting:
    place_order: tuple[str | int, ...]
    call: Call = field(compare=False)
    place: Place = field(compare=False)
    reply: asyncio.Future[Reply] = field(compare=False)


class LocalEngine:
    """Answers calls with a model in this process."""

    supports_schema: bool = True
    supports_logprobs: bool = True

    def __init__(self, judge: BatchJudge, *, batch_size: int = 8, batch_tokens: int = 32768) -> None:
        self.judge = judge
        self.model = self.identity = judge.name
        self.context_window = judge.context_window
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")
        self._worker: asyncio.Task[None] | None = None

    def where(self, place: Place) -> str:
        """In this process."""
        return "local"

    def max_parallel(self) -> int:
        """Enough to choose well-matched batches from."""
        return 8 * self.batch_size

    async def answer(self, call: Call, place: Place = ANYWHERE) -> Reply:
        """Wait for the call's batch; see `Engine.answer`."""
        item = _Waiting(place.order, call, place, asyncio.get_running_loop().create_future())
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
                item.place.admit()
            except StopCalls as stop:
                item.reply.set_exception(stop)
            else:
                batch.append(item)
        self._waiting = rest
        return batch

    def _answer(self, calls: list[Call]) -> list[Reply]:
        """In the worker thread: check lengths, split by memory, answer."""
        prompts = [self.judge.encode(call) for call in calls]
        replies: list[Reply | None] = [
            over_window(call, len(prompt), self.context_window)
            for call, prompt in zip(calls, prompts, strict=True)
        ]
        group: list[int] = []
        tokens = 0
        for index in [index for index, reply in enumerate(replies) if reply is None]:
            need = len(prompts[index]) + calls[index].sampling.max_tokens
            if group and tokens + need > self.batch_tokens:
                self._answer_group(group, calls, prompts, replies)
                group, tokens = [], 0
            group.append(index)
            tokens += need
        if group:
            self._answer_group(group, calls, prompts, replies)
        return [reply for reply in replies if reply is not None]

    def _answer_group(
        self, group: list[int], calls: list[Call], prompts: list[list[int]], replies: list[Reply | None]
    ) -> None:
        answers = self.judge.answer([calls[i] for i in group], [prompts[i] for i in group])
        for index, reply in zip(group, answers, strict=True):
            replies[index] = reply

    async def close(self) -> None:
        """Wait for the batch at work, then let the thread go."""
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown(wait=True)
