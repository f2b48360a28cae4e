"""A forecast corrected by a few prompts that were asked about for real (`--dry-run --calibrate N`).

By template, what the sample asked and wrote over what the forecast of the same prompts had foreseen is the factor for
the whole: how many statements and key points this judge finds, how much it thinks and writes, how its tokenizer
counts, how much is asked twice. How far such a forecast may be off follows from leaving out each prompt of the sample
in turn (the jackknife of a ratio estimate, Cochran, "Sampling Techniques", ch. 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judge_pipeline.calls.call import Call
from judge_pipeline.calls.store import Stored
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing
from judge_pipeline.engines.call_counts import Amount, Amounts, amount_lines, cost_line, total
from judge_pipeline.engines.run_calls import CallRunner, Prices

FEWEST = 5
"""Sampled prompts from which an error can be told."""
TWO_SIDED_95 = 1.96


@dataclass(frozen=True)
class Sampled:
    """One prompt that was asked about: what it asked, what had been foreseen for it, how many answers it has."""

    made: Mapping[str, Amount]
    foreseen: Mapping[str, Amount]
    answers: int


class MeasuringRunner(CallRunner):
    """A runner that adds up each prompt's calls by template; one that several prompts share counts for the first.

    What an earlier run has paid for counts as well, attempts that failed included.
    """

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.made: dict[str, Amounts] = {}
        """What each prompt, by its id, asked."""
        self._measured: set[str] = set()

    def of(self, prompts: Sequence[str]) -> list[Amounts]:
        """What each of these prompts asked. Raises UserError when a limit ended it before that was all."""
        if self.budget.stopped is not None:
            raise UserError(
                f"the calibration stopped: {self.budget.stopped}",
                "what was asked is kept; raise the limit, or calibrate with fewer prompts",
            )
        return [self.made.get(prompt, {}) for prompt in prompts]

    async def reply(
        self, call: Call, routing: Routing = DEFAULT_ROUTING, again: Collection[str] = ()
    ) -> Stored:
        """See `CallRunner.reply`."""
        stored = await super().reply(call, routing, again)
        key = call.key(self.engine.identity)
        if stored.reply.failure != "stopped" and key not in self._measured:
            self._measured.add(key)
            mine = self.made.setdefault(routing.affinity, {})
            mine[call.template] = mine.get(call.template, Amount()) + Amount.made(stored.usage)
        return stored


def spread_out(sizes: Mapping[str, float], count: int) -> list[str]:
    """Ids of `count` prompts (or all there are), evenly spread over the order by size: small and large ones."""
    ordered = sorted(sizes, key=lambda name: (sizes[name], name))
    count = min(count, len(ordered))
    return [ordered[int((number + 0.5) * len(ordered) / count)] for number in range(count)]


def corrected(foreseen: Mapping[str, Amount], answers: int, sample: Sequence[Sampled]) -> Amounts:
    """The forecast for `answers` answers, each template by the factors that the sample shows.

    A template that the sample never asked keeps what was assumed; one that nobody had foreseen is scaled by answers.
    """
    asked, expected = total_made(sample), _sum([one.foreseen for one in sample])
    share = answers / sum(one.answers for one in sample)
    found: Amounts = {}
    for template in dict.fromkeys([*foreseen, *asked]):
        real, thought = asked.get(template, Amount()), expected.get(template, Amount())
        if thought.calls:
            factors = map(_ratio, real.parts()[:3], thought.parts()[:3])
            amount = foreseen[template].scaled(*factors, 1.0)
            amount.cached_input_tokens = amount.input_tokens * _ratio(
                real.cached_input_tokens, real.input_tokens
            )
        else:
            amount = foreseen.get(template) or real.scaled(share)
        found[template] = amount
    return found


def may_be_off(
    foreseen: Mapping[str, Amount],
    answers: int,
    sample: Sequence[Sampled],
    prompts: int,
    worth: Callable[[Amount], float],
) -> float | None:
    """Half the 95% interval of the corrected forecast's `worth`, as a share of it; None for too small a sample."""
    count = len(sample)
    whole = worth(total(corrected(foreseen, answers, sample)))
    if count < FEWEST or not whole:
        return None
    without = [
        worth(total(corrected(foreseen, answers, [*sample[:out], *sample[out + 1 :]])))
        for out in range(count)
    ]
    middle = sum(without) / count
    variance = (count - 1) / count * sum((value - middle) ** 2 for value in without)
    unseen = 1 - count / prompts  # what was labelled already is known
    return TWO_SIDED_95 * math.sqrt(variance * unseen) / whole


def total_made(sample: Sequence[Sampled]) -> Amounts:
    """What the sample asked."""
    return _sum([one.made for one in sample])


def calibrated_lines(
    foreseen: Mapping[str, Amount], answers: int, prompts: int, sample: Sequence[Sampled], prices: Prices
) -> list[str]:
    """The corrected forecast for people: by template, what it rests on, how far it may be off, the money."""
    amounts = corrected(foreseen, answers, sample)

    def worth(amount: Amount) -> float:
        return prices.cost(amount.usage) or amount.input_tokens + amount.output_tokens

    error = may_be_off(foreseen, answers, sample, prompts, worth)
    spent = total(total_made(sample))
    of = f"{len(sample)} prompts with {sum(one.answers for one in sample)} answers"
    off = f"how far that may be off cannot be told from fewer than {FEWEST} prompts"
    return [
        *amount_lines(amounts),
        f"for {answers:,} answers to {prompts:,} prompts",
        f"measured on {of}: {spent.calls:,.0f} calls, {spent.input_tokens:,.0f} tokens in and "
        f"{spent.output_tokens:,.0f} out, which the run itself will not ask again",
        off if error is None else f"the sum may be off by {100 * error:.0f}% (95%)",
        cost_line(amounts, prices, error),
    ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _sum(parts: Sequence[Mapping[str, Amount]]) -> Amounts:
    found: Amounts = {}
    for part in parts:
        for template, amount in part.items():
            found[template] = found.get(template, Amount()) + amount
    return found
