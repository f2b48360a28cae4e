"""Confidence intervals over documents: answers to one document are not independent, so documents are resampled.

Means over prompts (within-prompt correlation, pair accuracy, best-of-N, …) are ratios of per-document sums, and all
replicates are two matrix products. Any other statistic is computed again on each resampled set of rows. Two rows of
a table use the same resamples, so their difference has an interval of its own, narrower than the two apart.
``scipy.stats.bootstrap`` resamples rows, not clusters, and draws anew at every call, so differences would lose that.

Fewer than `MIN_DOCUMENTS` documents give no interval: resamples of two documents that agree have a width of zero, which
would say that a figure is certain where next to nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from judge_pipeline.statistics.table import Floats, Ints

MIN_DOCUMENTS = 5
"""With fewer there is no interval."""
FEW_DOCUMENTS = 20
"""With fewer an interval is there and too narrow: percentile intervals of small samples are."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; `count` is what it averages over (prompts, pairs or answers)."""

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0

    def as_json(self) -> dict[str, float | int | None]:
        """Plain values for a JSON file."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}


NONE = Estimate(None)


@dataclass(frozen=True)
class Ratio:
    """Per-prompt numerators and denominators (P,) of a figure Σ numerator / Σ denominator."""

    numerator_P: Floats
    denominator_P: Floats

    @property
    def value(self) -> float | None:
        """The figure over all prompts; None where no prompt counts."""
        total = float(self.denominator_P.sum())
        return float(self.numerator_P.sum()) / total if total > 0 else None

    def where(self, keep_P: np.ndarray) -> Ratio:
        """The same figure over the prompts of a mask (P,)."""
        return Ratio(self.numerator_P * keep_P, self.denominator_P * keep_P)


class DocumentBootstrap:
    """`replicates` resamples of the documents that `document_P` numbers; percentile intervals at `level`."""

    def __init__(self, document_P: Ints, replicates: int = 1000, seed: int = 0, level: float = 0.95) -> None:
        _, self._document_P = np.unique(document_P, return_inverse=True)
        self.documents = int(self._document_P.max()) + 1 if len(document_P) else 0
        self.replicates, self.level = replicates, level
        generator = np.random.default_rng(seed)
        draws = generator.integers(0, max(1, self.documents), size=(replicates, self.documents))
        self._weights_BD = np.stack([np.bincount(row, minlength=self.documents) for row in draws]).astype(
            float
        )

    def ratio(self, ratio: Ratio) -> Estimate:
        """A figure over prompts and its interval."""
        low, high = self._interval(self._replicate(ratio), self._counting(ratio))
        return Estimate(ratio.value, low, high, int(ratio.denominator_P.sum()))

    def difference(self, first: Ratio, second: Ratio) -> Estimate:
        """`first` minus `second`, both computed on the same resamples."""
        if first.value is None or second.value is None:
            return NONE
        counting = min(self._counting(first), self._counting(second))
        low, high = self._interval(self._replicate(first) - self._replicate(second), counting)
        return Estimate(first.value - second.value, low, high, int(first.denominator_P.sum()))

    def statistic(
        self,
        compute: Callable[[Ints], float | None],
        document_R: Ints,
        rows_R: Ints,
        replicates: int | None = None,
    ) -> Estimate:
        """Any figure of a set of rows: `compute(rows)`, again on each resample (the first `replicates` of them).

        `document_R` numbers the document of each row, `rows_R` are the rows that count.
        """
        value = compute(rows_R)
        if value is None:
            return NONE
        rows_of = {number: rows_R[document_R[rows_R] == number] for number in np.unique(document_R)}
        samples = []
        for weights in self._weights_BD[:replicates]:
            chosen = [
                np.repeat(rows_of[number], int(weight))
                for number, weight in enumerate(weights)
                if weight and number in rows_of
            ]
            sample = compute(np.concatenate(chosen)) if chosen else None
            samples.append(np.nan if sample is None else sample)
        low, high = self._interval(np.array(samples), len(np.unique(document_R[rows_R])))
        return Estimate(value, low, high, len(rows_R))

    def _replicate(self, ratio: Ratio) -> Floats:
        numerator = np.bincount(self._document_P, ratio.numerator_P, self.documents)
        denominator = np.bincount(self._document_P, ratio.denominator_P, self.documents)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self._weights_BD @ numerator) / (self._weights_BD @ denominator))

    def _counting(self, ratio: Ratio) -> int:
        """Documents that a figure rests on."""
        return len(np.unique(self._document_P[ratio.denominator_P > 0]))

    def _interval(self, samples_B: Floats, documents: int) -> tuple[float | None, float | None]:
        samples = samples_B[np.isfinite(samples_B)]
        if documents < MIN_DOCUMENTS or len(samples) < 2:
            return None, None
        tail = (1 - self.level) / 2
        low, high = np.quantile(samples, [tail, 1 - tail])
        return float(low), float(high)
