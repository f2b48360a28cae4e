"""Ask an engine a list of calls, each at most once: what the judge baselines and benchmarks use.

Labelling has a scheduler of its own (plans, limits, batch files); here the calls are known from the start. Answers go
through the same call store, so a second run asks nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.calls.store import CallStore, Finished, StoreWriter
from judge_pipeline.common.progress import Progress
from judge_pipeline.engines.base import Engine, Place


async def ask_all(
    engine: Engine, store: CallStore, calls: Sequence[Call], desc: str = "judge"
) -> list[Reply]:
    """Replies in the order of `calls`; equal calls are asked once, finished ones not at all.

    Calls go out in their order in the list, so put those with a common beginning together. Raises UserError when the
    engine says that no call can succeed any more; what was answered by then is stored.
    """
    unique = {call.key(engine.identity): call for call in calls}
    replies = {key: found for key in unique if (found := store.get(key)) is not None}
    pending = [key for key in unique if key not in replies]
    writer = StoreWriter(store)
    gate = asyncio.Semaphore(max(1, engine.max_parallel()))
    with Progress(len(unique), desc, "calls", done=len(replies)) as progress:

        async def ask(position: int, key: str) -> None:
            async with gate:
                place = Place(order=(position,), affinity=unique[key].template)
                reply = await engine.answer(unique[key], place)
            await writer.put(Finished(unique[key], engine.identity, reply, engine.where(place)))
            replies[key] = reply
            progress.update(failed=sum(item.failure is not None for item in replies.values()))

        tasks = [asyncio.create_task(ask(position, key)) for position, key in enumerate(pending)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await writer.close()
    return [replies[call.key(engine.identity)] for call in calls]
