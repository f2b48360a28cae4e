"""Labels all prompts of a file: a window of them at a time, rows written in order, nothing lost on the way out.

A prompt leaves the window when its last call is answered. Rows that are done before those of an earlier prompt wait
for them, so that one slow call holds up nobody else; only so many bytes of them, so that memory is bounded whatever
the file's length.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import to_json
from judge_pipeline.common.records import Label, Prompt
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.labelling.planning import PromptPlanner, unlabelled
from judge_pipeline.labelling.summary import Tally

TICK_S = 2.0
WAITING_BYTES = 256 * 2**20
"""Rows that may wait for those of an earlier prompt."""


class Rows(Protocol):
    """Where rows go, by the position of their prompt; `LabelFile` is one."""

    tally: Tally
    next_position: int
    """Rows before this position are written."""

    @property
    def kept(self) -> Collection[str]:
        """Ids of prompts whose rows of an earlier run stay."""
        ...

    def put(self, position: int, rows: list[Label] | str) -> int:
        """Hand in a prompt's rows, or its id to keep those of an earlier run; returns how many new ones were written."""
        ...

    def finish(self) -> None:
        """All rows are in."""
        ...


class Scheduler:
    """Runs a `PromptPlanner` over a stream of prompts."""

    def __init__(
        self,
        planner: PromptPlanner,
        builder: DocumentIndexer,
        labels: Rows,
        *,
        window: int = 64,
        waiting_bytes: int = WAITING_BYTES,
        progress: Progress | None = None,
    ) -> None:
        self.planner, self.builder, self.labels = planner, builder, labels
        self.window, self.waiting_bytes = window, waiting_bytes
        self.progress = progress
        self.interrupted = False
        self._room = asyncio.Condition()
        self._open: set[int] = set()
        """Positions of prompts under way."""
        self._waiting: dict[int, int] = {}
        """Bytes of rows that wait to be written, by position."""

    async def run(self, prompts: Iterator[Prompt]) -> None:
        """Label every prompt. Raises KeyboardInterrupt after a clean stop, and whatever an engine raises."""
        tasks: set[asyncio.Task[None]] = set()
        ticker = asyncio.create_task(self._tick())
        try:
            with self._interrupts():
                for position, prompt in enumerate(prompts):
                    await self._take(position, prompt, tasks)
                    if self.interrupted or _failed(tasks):
                        break
                    tasks -= {task for task in tasks if task.done()}
                await _all(tasks)
            if self.interrupted:
                raise KeyboardInterrupt
            self.labels.finish()
        finally:
            ticker.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(ticker, *tasks, return_exceptions=True)
            await self.planner.runner.finish()

    async def _take(self, position: int, prompt: Prompt, tasks: set[asyncio.Task[None]]) -> None:
        """Start on one prompt, once the window has room."""
        if prompt.id in self.labels.kept:
            self._hand_in(position, prompt.id)
            return
        async with self._room:
            while self._full() and not self.interrupted and not _failed(tasks):
                await self._room.wait()
        if (stopped := self.planner.runner.budget.stopped) is not None:
            rows = unlabelled(prompt, self.labels.tally.names, "stopped", stopped, self.planner.weighting)
            self._hand_in(position, rows)
        elif not self.interrupted:
            self._open.add(position)
            tasks.add(asyncio.create_task(self._label(position, prompt)))

    def _full(self) -> bool:
        """Whether so much is under way, or done and waiting, that no further prompt may begin."""
        waiting = self._open and sum(self._waiting.values()) >= self.waiting_bytes
        return len(self._open) >= self.window or bool(waiting)

    async def _label(self, position: int, prompt: Prompt) -> None:
        try:
            document = self.builder.build(prompt.context)
            self._hand_in(position, await self.planner.label(prompt, document, position))
        finally:
            self._open.discard(position)
            async with self._room:  # wakes the reader of prompts, to go on or to see a failure
                self._room.notify_all()

    def _hand_in(self, position: int, rows: list[Label] | str) -> None:
        """Write a prompt's rows, or keep those of an earlier run; see `LabelFile.put`."""
        if self.interrupted:
            return  # rows that lack what was not asked any more are no result: the next run makes them
        if position > self.labels.next_position and not isinstance(rows, str):
            self._waiting[position] = sum(len(to_json(row)) for row in rows)
        answers = self.labels.put(position, rows)
        if self.progress is not None and answers:
            self.progress.update(answers, **self._figures())
        written = [place for place in self._waiting if place < self.labels.next_position]
        for place in written:
            del self._waiting[place]

    def _figures(self) -> dict[str, object]:
        """What the progress line shows besides the counts."""
        budget = self.planner.runner.budget
        spent, usage = budget.spent, budget.spent.usage
        figures: dict[str, object] = {"calls": spent.made, "reused": spent.from_store + spent.shared}
        figures |= {"in": f"{usage.input_tokens:,}", "out": f"{usage.output_tokens:,}"}
        if usage.cached_input_tokens:
            share = usage.cached_input_tokens / max(1, usage.input_tokens)
            figures["cached"] = f"{100 * share:.0f}%"
        cost = budget.prices.cost(usage)
        if cost is not None:
            figures["cost"] = f"{cost:.4f}"
        if spent.failed:
            figures["failed"] = spent.failed
        return figures

    async def _tick(self) -> None:
        while self.progress is not None:
            await asyncio.sleep(TICK_S)
            self.progress.update(0, **self._figures())

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Ctrl-C: let the calls in flight finish, begin no others; a second one leaves them."""
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGINT, self._interrupt)
        except (NotImplementedError, RuntimeError, ValueError):
            yield  # not the main thread: whoever runs us handles Ctrl-C
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    def _interrupt(self) -> None:
        budget = self.planner.runner.budget
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        budget.stopped, budget.hurried = "interrupted", True
        print(
            f"\nstopping: waiting for {budget.in_flight} calls in flight, so that they are kept; "
            "Ctrl-C again to leave them",
            file=sys.stderr,
            flush=True,
        )


def _failed(tasks: set[asyncio.Task[None]]) -> bool:
    return any(task.done() and not task.cancelled() and task.exception() for task in tasks)


async def _all(tasks: set[asyncio.Task[None]]) -> None:
    """Wait for all; the first error ends the wait and is raised."""
    if tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
