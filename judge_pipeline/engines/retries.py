"""When and how soon to ask again: exponential backoff with full jitter, and the server's own word if it gives one.

tenacity and stamina repeat a function; here each attempt takes its turn at a gate anew and may go to another endpoint,
a reply can be the failure, and every attempt's outcome moves the limit. What they would replace is `delay`, two lines.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from judge_pipeline.calls.call import FailureReason, Reply

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
    unreachable: bool = False
    """No connection at all: another endpoint may do better."""
    reply: Reply | None = None
    """What came back, if anything did: its tokens were paid for."""


@dataclass(frozen=True)
class RetryPolicy:
    """How patient to be."""

    retries: int = 5
    base_s: float = 0.5
    longest_s: float = 30.0

    def delay(self, attempt: int, retry_after_s: float, rng: random.Random) -> float:
        """Seconds before attempt number `attempt` + 1 (from 0): full jitter, never sooner than the server asks."""
        longest = min(self.longest_s, self.base_s * 2**attempt)
        return retry_after_s + rng.uniform(0, longest)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float:
    """Seconds the server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date; 0 if unsaid."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    seconds = 0.0
    try:
        if milliseconds is not None:
            seconds = float(milliseconds) / 1000
        elif value is not None:
            seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value or "")
        if date is not None:
            seconds = email.utils.mktime_tz(date) - (time.time() if now is None else now)
    if seconds != seconds:  # "nan" is a float too
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
