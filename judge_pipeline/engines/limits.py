"""What a command that asks a judge may spend, and what it shows beforehand: settings that `label` and `evaluate` share."""

from __future__ import annotations

from judge_pipeline.common.config import Config, free
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.open import JudgeConfig
from judge_pipeline.engines.run_calls import MOST_TOKENS, Budget, Prices

PARTIAL = 3
"""Exit code when some answers lack a score."""
PENDING = 4
"""Exit code when calls are in batch files whose answers are awaited."""


class Limits(Config):
    """Prices, limits and the dry run."""

    dry_run: bool = free(False, "show prompts, calls, tokens and money expected; ask nothing")
    calibrate: int | None = free(
        None,
        "with --dry-run: ask about so many prompts, small and large ones, and forecast from what they took",
        ge=1,
    )
    price_input: float | None = free(None, "money per million input tokens", ge=0)
    price_output: float | None = free(
        None, "money per million output tokens, those of thinking included", ge=0
    )
    price_cached_input: float | None = free(
        None, "money per million cached input tokens; default: as input", ge=0
    )
    max_calls: int | None = free(None, "stop after so many calls in this run", ge=0)
    max_cost: float | None = free(None, "stop when this run has cost so much (needs prices)", gt=0)
    max_tokens_ceiling: int = free(
        MOST_TOKENS,
        "room up to which a reply that was cut is asked for again, with twice as much each time",
        ge=0,
    )
    retry_failed: bool = free(False, "do again what failed in an earlier run")

    @property
    def budget(self) -> Budget:
        """When the run stops asking, with the prices as given."""
        prices = Prices(self.price_input, self.price_output, self.price_cached_input)
        return Budget(self.max_calls, self.max_cost, prices)

    def check_limits(self, judge: JudgeConfig) -> None:
        """Refuse what cannot be kept or answered. Raises UserError."""
        if self.max_cost is not None and self.price_input is None and self.price_output is None:
            raise UserError("--max-cost needs prices", "give --price-input and --price-output")
        if self.calibrate is not None and not self.dry_run:
            raise UserError("--calibrate forecasts what a run will cost", "give --dry-run as well")
        if self.calibrate is not None and judge.batch_out is not None:
            raise UserError("--calibrate asks a judge at once", "name an endpoint or a local judge for it")
        if judge.engine == "endpoint" and not judge.base_url:
            raise UserError("--judge.engine endpoint needs --judge.base-url")
        if (judge.batch_out or judge.batch_in) and not judge.model:
            raise UserError("batch files need --judge.model", "name the model the batch is for")
