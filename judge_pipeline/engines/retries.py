"""One attempt at a call that failed in a way that may pass, and how patient to be with such."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from judge_pipeline.calls.call import FailureReason, Reply
from judge_pipeline.common.errors import UserError

RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
OVERLOADED_STATUS = frozenset({429, 503, 529})
LONGEST_RETRY_AFTER_S = 600.0


@dataclass(frozen=True)
class FailedAttempt:
    """One attempt failed in a way that may pass."""

    reason: FailureReason
    detail: str
    overloaded: bool = False
    retry_after_s: float = 0.0
    reply: Reply | None = None
    """What came back, if anything did: its tokens were paid for."""

    @property
    def outage(self) -> bool:
        """Nothing was answered: the endpoint may be out of order."""
        return self.reply is None


@dataclass(frozen=True)
class Denied:
    """A 403 or 404: of this call's content, or of all calls. `lasting` ends the run if it is of all."""

    failure: Reply
    lasting: UserError


@dataclass(frozen=True)
class OutOfCredit:
    """The account's money or quota is spent."""

    detail: str


@dataclass(frozen=True)
class RetryPolicy:
    """How patient to be."""

    retries: int = 5
    base_s: float = 0.5
    longest_s: float = 30.0

    def delay(self, attempt: int, retry_after_s: float, rng: random.Random) -> float:
        """Seconds before attempt number `attempt` + 1 (from 0): full jitter, never sooner than the server asks."""
        return retry_after_s + rng.uniform(0, min(self.longest_s, self.base_s * 2**attempt))

    def look_again(self, times: int) -> float:
        """Seconds before an endpoint that is down is looked at for the `times`-th time (from 0)."""
        return min(2 * self.longest_s, self.base_s * 2 ** min(times + 1, 30))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float:
    """Seconds the server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date; 0 if unsaid."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    seconds = 0.0
    try:
        seconds = float(value or 0) if milliseconds is None else float(milliseconds) / 1000
    except ValueError:
        date = email.utils.parsedate_tz(value or "")
        if date is not None:
            seconds = email.utils.mktime_tz(date) - (time.time() if now is None else now)
    if seconds != seconds:  # "nan" is a float too
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
