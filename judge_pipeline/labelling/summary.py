"""`summary.json`: what a labelling run came to, in counts a script can read.

`calls`, `tokens` and `cost` are those of the last run alone; `store` sums up everything the run directory has ever
asked, over all runs that worked on it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from judge_pipeline.calls.call import CallUsage
from judge_pipeline.calls.store import StoreTotals
from judge_pipeline.common.records import Label
from judge_pipeline.engines.chat_protocol import Dialect
from judge_pipeline.engines.run_calls import Budget, Prices

NOTED = ("fallback", "failed_votes", "statement_cap", "key_point_cap", "copied_from_example", "tolerated")
"""Keys of a dimension's evidence that say something went otherwise than asked; so does a `rule`, by its value."""


@dataclass
class ScoreStats:
    """Running mean and variance of one dimension's scores (Welford), and ties within prompts."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    pairs: int = 0
    tied: int = 0

    def add(self, scores: Sequence[float]) -> None:
        """Take in the scores of one prompt's answers."""
        for score in scores:
            self.n += 1
            step = score - self.mean
            self.mean += step / self.n
            self.squares += step * (score - self.mean)
        for left, right in itertools.combinations(scores, 2):
            self.pairs += 1
            self.tied += left == right

    def as_dict(self) -> dict[str, Any]:
        """`ties` is the share of pairs of answers to one prompt that have the same score."""
        return {
            "n": self.n,
            "mean": round(self.mean, 4) if self.n else None,
            "std": round(math.sqrt(self.squares / (self.n - 1)), 4) if self.n > 1 else None,
            "ties": round(self.tied / self.pairs, 4) if self.pairs else None,
        }


@dataclass
class Tally:
    """Counts over label rows, taken in prompt by prompt."""

    names: Sequence[str]
    prompts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Counter[str]] = field(default_factory=dict)
    notes: dict[str, Counter[str]] = field(default_factory=dict)
    """Per dimension how many answers' evidence has each of `NOTED`."""
    scores: dict[str, ScoreStats] = field(default_factory=dict)
    rewards: ScoreStats = field(default_factory=ScoreStats)

    def add(self, rows: Sequence[Label]) -> None:
        """Count one prompt's rows."""
        self.prompts += 1
        for row in rows:
            awaited = any(failure.reason == "pending" for failure in row.failures)
            self.statuses["pending" if awaited else row.status] += 1
            for failure in row.failures:
                if failure.reason == "pending":
                    continue  # nothing failed
                self.failures.setdefault(failure.dimension, Counter())[failure.reason] += 1
            for dimension, kept in row.evidence.items():
                evidence = kept if isinstance(kept, dict) else {}
                found = [name for name in NOTED if name in evidence]
                found += [rule] if isinstance(rule := evidence.get("rule"), str) else []
                if found:
                    self.notes.setdefault(dimension, Counter()).update(found)
        for name in self.names:
            scores = [score for row in rows if (score := row.scores.get(name)) is not None]
            self.scores.setdefault(name, ScoreStats()).add(scores)
        self.rewards.add([row.reward for row in rows if row.reward is not None])

    @property
    def complete(self) -> bool:
        """Every answer has all its scores."""
        return not any(self.statuses[status] for status in ("partial", "failed", "pending"))

    @property
    def pending(self) -> int:
        """Answers that lack a score because their calls are in batch files."""
        return self.statuses["pending"]

    @property
    def failed(self) -> int:
        """Answers that lack a score for another reason."""
        return self.statuses["partial"] + self.statuses["failed"]

    @property
    def responses(self) -> int:
        """Answers counted so far."""
        return sum(self.statuses.values())


def summarize(
    tally: Tally,
    budget: Budget,
    totals: StoreTotals,
    seconds: float,
    batch: dict[str, Any] | None = None,
    fields: Mapping[str, Dialect] | None = None,
) -> dict[str, Any]:
    """The content of `summary.json`; `batch` is what was done with batch files, `fields` which ones judges take."""
    spent, prices = budget.spent, budget.prices
    return {
        "prompts": tally.prompts,
        "responses": tally.responses,
        **{status: tally.statuses[status] for status in ("labelled", "partial", "failed", "pending")},
        "failures": {name: dict(found) for name, found in sorted(tally.failures.items())},
        "notes": {name: dict(found) for name, found in sorted(tally.notes.items())},
        "calls": {"made": spent.made, "from_store": spent.from_store, "shared": spent.shared},
        "batch": batch or {},
        "fields": {judge: str(dialect) for judge, dialect in (fields or {}).items()},
        "tokens": _tokens(spent.usage),
        "cost": _cost(prices, spent.usage),
        "seconds": round(seconds, 1),
        "stopped": budget.stopped,
        "store": {
            "calls": totals.calls,
            "failed_attempts": totals.attempts_failed,
            "tokens": _tokens(totals.usage),
            "cost": _cost(prices, totals.usage),
        },
        "scores": {name: stats.as_dict() for name, stats in tally.scores.items()},
        "reward": tally.rewards.as_dict(),
    }


def _tokens(usage: CallUsage) -> dict[str, int]:
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cached_input": usage.cached_input_tokens,
        "reasoning": usage.reasoning_tokens,
    }


def _cost(prices: Prices, usage: CallUsage) -> dict[str, Any] | None:
    total = prices.cost(usage)
    if total is None:
        return None
    cached = prices.input if prices.cached_input is None else prices.cached_input
    per_million = {"input": prices.input, "output": prices.output, "cached_input": cached}
    return {"total": round(total, 6), "per_million": per_million}


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """A few lines for the terminal."""
    calls, tokens, store = summary["calls"], summary["tokens"], summary["store"]
    lines = [
        f"{summary['responses']} answers of {summary['prompts']} prompts: {summary['labelled']} labelled, "
        f"{summary['partial']} partial, {summary['failed']} failed"
        + (f", {summary['pending']} wait for batch answers" if summary["pending"] else ""),
        f"calls: {calls['made']} made, {calls['from_store']} from the store, {calls['shared']} shared "
        f"({store['calls']} in the store)",
        f"tokens: {tokens['input']:,} in ({tokens['cached_input']:,} cached), {tokens['output']:,} out"
        + (f" ({tokens['reasoning']:,} to think)" if tokens["reasoning"] else ""),
    ]
    if summary["cost"] is not None:
        lines.append(f"cost: {summary['cost']['total']:.4f}")
    for name, stats in summary["scores"].items():
        if stats["n"]:
            ties = "" if stats["ties"] is None else f", {100 * stats['ties']:.0f}% of pairs tied"
            deviation = "" if stats["std"] is None else f" ± {stats['std']:.2f}"
            lines.append(f"{name}: {stats['mean']:.2f}{deviation} over {stats['n']}{ties}")
    for label, counted in (("no {}", summary["failures"]), ("{}, noted in evidence", summary["notes"])):
        for name, counts in counted.items():
            listed = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            lines.append(f"{label.format(name)}: {listed}")
    lines += [f"fields for {judge}: {told}" for judge, told in summary["fields"].items()]
    if summary["stopped"]:
        lines.append(
            f"stopped: {summary['stopped']}; the same command goes on from here once that is no longer so"
        )
    return lines
