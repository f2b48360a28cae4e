"""The text that `judge-pipeline label --dry-run` prints: prompts as they would be asked, calls, tokens, money."""

from __future__ import annotations

from collections.abc import Sequence

from judge_pipeline.engines.call_counts import Amount, amount_lines, cost_line, example_lines, total
from judge_pipeline.engines.run_calls import Prices
from judge_pipeline.labelling.calibration import FEWEST, Sampled, corrected, may_be_off, total_made
from judge_pipeline.labelling.forecast import Forecast, length_lines

ASSUMED = (
    "assumed: a statement a sentence, five key points a chunk, no thinking before a reply; --calibrate 10 labels ten "
    "prompts and measures all that"
)


def forecast_text(forecast: Forecast, prices: Prices) -> str:
    """What a run will ask, by stand-ins alone."""
    amounts = forecast.counts.amounts
    return "\n".join(
        [
            *_lead(forecast),
            *amount_lines(amounts),
            f"for {forecast.answers:,} answers to {forecast.prompts:,} prompts; nothing was asked",
            ASSUMED,
            cost_line(amounts, prices),
        ]
    )


def calibrated_text(forecast: Forecast, sample: Sequence[Sampled], prices: Prices) -> str:
    """What a run will ask, by what labelling a sample of its prompts has shown."""
    of = forecast.counts.amounts, forecast.answers, sample
    amounts = corrected(*of)

    def worth(amount: Amount) -> float:
        return prices.cost(amount.usage) or amount.input_tokens + amount.output_tokens

    error = may_be_off(*of, forecast.prompts, worth)
    spent = total(total_made(sample))
    told = (
        f"measured on {len(sample)} prompts with {sum(one.answers for one in sample)} answers: {spent.calls:,.0f} calls, "
        f"{spent.input_tokens:,.0f} tokens in and {spent.output_tokens:,.0f} out, which the labelling run will not ask again"
    )
    off = (
        f"the sum may be off by {100 * error:.0f}% (95%)"
        if error is not None
        else f"how far that may be off cannot be told from fewer than {FEWEST} prompts"
    )
    return "\n".join(
        [
            *_lead(forecast),
            *amount_lines(amounts),
            f"for {forecast.answers:,} answers to {forecast.prompts:,} prompts",
            told,
            off,
            cost_line(amounts, prices, error),
        ]
    )


def _lead(forecast: Forecast) -> list[str]:
    return [*example_lines(forecast.counts.examples), *length_lines(forecast)]
