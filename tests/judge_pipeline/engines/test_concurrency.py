"""The adaptive limit against servers of every temper, on a simulated clock; the gate's order and pauses."""

from __future__ import annotations

import asyncio
import heapq
import random

import pytest

from judge_pipeline.engines.concurrency import AdaptiveLimit, Gate, Permit


def simulate(limit: AdaptiveLimit, latency, calls=4000, refuses=None, until=None):
    """Keep the limit's number of calls in flight against `latency(in_flight, now, dice)`; the limits over time."""
    dice = random.Random(0)
    now, done, count, trace = 0.0, 0, 0, []
    flying: list[tuple[float, int, Permit]] = []
    while done < calls and (until is None or now < until):
        while len(flying) < limit.whole:
            permit = Permit(now, limit.era)
            if refuses and refuses(len(flying) + 1):
                permit.overloaded = True
                heapq.heappush(flying, (now + 0.01, count, permit))
            else:
                permit.succeeded("t", 10)
                heapq.heappush(flying, (now + latency(len(flying) + 1, now, dice), count, permit))
            count += 1
        now, _, permit = heapq.heappop(flying)
        if permit.overloaded:
            limit.on_overload(permit)
        else:
            done += 1
            limit.on_reply(permit, now, len(flying) + 1)
        trace.append((now, limit.whole))
    return trace, done / now


def late(trace):
    tail = [limit for _, limit in trace[len(trace) // 2 :]]
    return sum(tail) / len(tail)


def test_steady_latency_grows_to_the_ceiling():
    limit = AdaptiveLimit(64)
    trace, rate = simulate(limit, lambda n, now, dice: 0.2, calls=8000)
    assert late(trace) == 64
    assert rate > 0.9 * 64 / 0.2


def test_noise_and_a_lucky_first_reply_do_not_make_it_collapse():
    limit = AdaptiveLimit(64)

    def latency(n, now, dice):
        return 0.01 if dice.random() < 0.1 else 0.05 * dice.lognormvariate(0, 0.4)

    trace, _ = simulate(limit, latency, calls=8000)
    assert late(trace) > 45


def test_a_server_that_queues_and_never_refuses_is_kept_busy_but_not_flooded():
    limit = AdaptiveLimit(256)
    capacity = 16
    trace, rate = simulate(
        limit, lambda n, now, dice: 0.1 * max(1.0, n / capacity) * dice.uniform(0.95, 1.05), calls=8000
    )
    assert 14 <= late(trace) <= 40
    assert rate > 0.9 * capacity / 0.1


def test_a_batching_server_is_driven_to_where_more_calls_do_no_more_work():
    limit = AdaptiveLimit(512)

    def latency(n, now, dice):  # every call is slowed by every other, all in all 64 times the work is done
        return (0.1 * (1 + n / 100) if n <= 128 else 0.1 * 2.28 * n / 128) * dice.uniform(0.97, 1.03)

    trace, rate = simulate(limit, latency, calls=20000)
    assert 70 <= late(trace) <= 260
    assert rate > 0.8 * 128 / 0.228


def test_refusals_halve_it_and_it_comes_back():
    limit = AdaptiveLimit(256)
    trace, _ = simulate(limit, lambda n, now, dice: 0.1, refuses=lambda n: n > 40, calls=8000)
    assert 15 <= late(trace) <= 45
    cut = AdaptiveLimit(256, limit=32.0)
    permits = [Permit(0.0, cut.era) for _ in range(3)]
    for permit in permits:  # one wave of refusals is one piece of news
        cut.on_overload(permit)
    assert cut.whole == 16


def test_a_server_that_loses_half_its_strength_is_given_less():
    limit = AdaptiveLimit(256)
    trace, _ = simulate(
        limit, lambda n, now, dice: 0.1 * max(1.0, n / (40 if now < 30 else 10)), calls=30000, until=90
    )
    before = [n for now, n in trace if 15 < now < 30]
    after = [n for now, n in trace if now > 60]
    assert sum(before) / len(before) > 30
    assert sum(after) / len(after) < 30


def test_an_idle_limit_learns_nothing():
    limit = AdaptiveLimit(256)
    for _ in range(100):
        permit = Permit(0.0, limit.era)
        permit.succeeded("t", 10)
        limit.on_reply(permit, 0.1, in_flight=1)
    assert limit.whole == 16


@pytest.mark.parametrize("limit", [1, 3])
def test_the_ceiling_holds_from_the_start(limit):
    adaptive = AdaptiveLimit(limit)
    trace, _ = simulate(adaptive, lambda n, now, dice: 0.1, calls=200)
    assert max(n for _, n in trace) <= limit


def test_gate_lets_calls_in_by_order_and_never_more_than_the_limit():
    async def main():
        gate = Gate(AdaptiveLimit(2, limit=2.0))
        entered, most = [], 0
        release = asyncio.Event()

        async def call(order):
            nonlocal most
            async with gate.permit(order):
                entered.append(order)
                most = max(most, gate.in_flight)
                await release.wait()

        tasks = [asyncio.create_task(call(("first", n))) for n in range(2)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(call(order)) for order in [("b", 1), ("a", 2), ("b", 0), ("a", 1)]]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
        return entered[2:], most, gate.in_flight

    entered, most, left = asyncio.run(main())
    assert entered == [("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert most == 2
    assert left == 0


def test_gate_pauses_as_long_as_the_server_asked():
    now = [0.0]

    async def main():
        gate = Gate(AdaptiveLimit(8, limit=8.0), clock=lambda: now[0])
        async with gate.permit() as permit:
            permit.overload(retry_after_s=30.0)
        waiting = asyncio.create_task(gate.permit().__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
        now[0] = 31.0
        async with gate.permit():  # whoever comes after the pause opens the door for those who waited
            pass
        await asyncio.wait_for(waiting, 1)

    asyncio.run(main())


def test_a_cancelled_caller_passes_its_turn_on():
    async def main():
        gate = Gate(AdaptiveLimit(1, limit=1.0))
        entered = []

        async def call(name):
            async with gate.permit():
                entered.append(name)

        async with gate.permit():
            second, third = asyncio.create_task(call("second")), asyncio.create_task(call("third"))
            await asyncio.sleep(0)
        second.cancel()  # let in by now, but not yet run
        await asyncio.wait_for(third, 1)
        return entered, gate.in_flight

    assert asyncio.run(main()) == (["third"], 0)
