"""Asks calls that are all known from the start: those of judge baselines, of benchmarks. Labelling's come up one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.calls.store import LASTING_FAILURES, CallStore
from judge_pipeline.calls.writer import StoreWriter
from judge_pipeline.common.progress import Progress
from judge_pipeline.engines.base import Routing
from judge_pipeline.engines.batch_file import BATCH_FAILURES
from judge_pipeline.engines.calibration import MeasuringRunner
from judge_pipeline.engines.limits import Limits
from judge_pipeline.engines.mail import open_mail
from judge_pipeline.engines.open import JudgeConfig, open_engine
from judge_pipeline.engines.run_calls import Budget, CallRunner

UNDER_WAY = 1024
"""Calls begun at a time: each may hold a whole document."""


async def run_calls(
    runner: CallRunner, asked: Iterable[tuple[str, Call]], total: int, desc: str = "judge"
) -> list[Reply]:
    """Replies in the order of `asked`: the prompt that asks, and the call.

    Equal calls are asked once, finished ones not at all. They go out in their order, so put those with a common
    beginning together. Raises UserError when the engine says that no call can succeed any more; what was answered by
    then is stored.
    """
    replies: dict[str, Reply] = {}
    keys: list[str] = []
    running: set[asyncio.Task[None]] = set()

    async def run(position: int, key: str, owner: str, call: Call) -> None:
        replies[key] = (await runner.reply(call, Routing(priority=(position,), affinity=owner))).reply

    with Progress(total, desc, "calls") as progress:

        async def settle(most: int) -> None:
            nonlocal running
            while len(running) > most:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                progress.update(len(done), failed=runner.budget.spent.failed)

        try:
            seen: set[str] = set()
            for owner, call in asked:
                keys.append(key := call.key(runner.engine.identity))
                if key in seen:
                    progress.update()
                    continue
                seen.add(key)
                running.add(asyncio.create_task(run(len(keys), key, owner, call)))
                await settle(UNDER_WAY)
            await settle(0)
        except BaseException:
            for task in running:
                task.cancel()
            runner.cancel()
            raise
        finally:
            await runner.finish()
    return [replies[key] for key in keys]


@dataclass
class Desk:
    """A judge at work for one command: the runner that asks it, and what was done with batch files."""

    runner: MeasuringRunner
    batch: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def open_desk(
    judge: JudgeConfig, store: CallStore, budget: Budget, limits: Limits | None = None
) -> AsyncIterator[Desk]:
    """The judge that `judge` names, batch files included; they are written when the block ends well."""
    mail = await open_mail(judge, store)
    engine = mail.engine or await open_engine(judge, store)
    writer = StoreWriter(store)
    lasting = LASTING_FAILURES | (BATCH_FAILURES if mail.engine else set())
    settings = limits or Limits()
    runner = MeasuringRunner(
        engine,
        writer,
        budget,
        retry_failed=settings.retry_failed,
        lasting=lasting,
        most_tokens=settings.max_tokens_ceiling,
    )
    try:
        yield (desk := Desk(runner))
        desk.batch = mail.finish()
    finally:
        await writer.close()
        await engine.close()
