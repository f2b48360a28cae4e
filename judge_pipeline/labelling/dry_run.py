"""The text that `judge-pipeline label --dry-run` prints: prompts as they would be asked, calls, tokens, money."""

from __future__ import annotations

from collections.abc import Sequence

from judge_pipeline.engines.calibration import Sampled, calibrated_lines
from judge_pipeline.engines.call_counts import amount_lines, cost_line, example_lines, thinking_lines
from judge_pipeline.engines.run_calls import Prices
from judge_pipeline.labelling.forecast import Forecast, length_lines

ASSUMED = (
    "assumed: a statement a sentence, five key points a chunk, no thinking before a reply; --calibrate 10 labels ten "
    "prompts and measures all that"
)


def forecast_text(forecast: Forecast, prices: Prices, thinking: int | None = None) -> str:
    """What a run will ask, by stand-ins alone; `thinking` is the most tokens that the judge may think a call."""
    amounts = forecast.counts.amounts
    return "\n".join(
        [
            *_lead(forecast),
            *amount_lines(amounts),
            f"for {forecast.answers:,} answers to {forecast.prompts:,} prompts; nothing was asked",
            ASSUMED,
            cost_line(amounts, prices),
            *thinking_lines(amounts, thinking, prices),
        ]
    )


def calibrated_text(forecast: Forecast, sample: Sequence[Sampled], prices: Prices) -> str:
    """What a run will ask, by what labelling a sample of its prompts has shown."""
    amounts, size = forecast.counts.amounts, (forecast.answers, forecast.prompts)
    return "\n".join([*_lead(forecast), *calibrated_lines(amounts, *size, sample, prices)])


def _lead(forecast: Forecast) -> list[str]:
    return [*example_lines(forecast.counts.examples), *length_lines(forecast)]
