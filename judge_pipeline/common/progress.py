"""Progress for everything that takes more than a few seconds: a bar on a terminal, plain lines elsewhere.

The bar is tqdm's. The lines are ours: off a terminal tqdm and rich redraw with carriage returns or fall silent.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from judge_pipeline.common.formatting import format_seconds

LINE_EVERY_S = 15.0
"""How often a plain line is printed when the output is a file or a pipe."""


class _Bar(tqdm):
    """A bar that says its rate by the minute, as the plain lines do: judged answers are seconds apart."""

    FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {per_minute}{postfix}]"

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's figures, and `per_minute`."""
        figures: dict[str, Any] = super().format_dict
        elapsed, fresh = figures["elapsed"], figures["n"] - figures["initial"]
        rate = figures["rate"] or (fresh / elapsed if elapsed else 0.0)
        figures["per_minute"] = f"{60 * rate:.1f} {self.unit}/min"
        return figures


class Progress:
    """Counts `unit`s up to `total`, with the time left and any figures given to `update`.

    Use as a context manager. `done` units that an earlier run finished do not count towards the rate.
    """

    def __init__(self, total: int | None, desc: str, unit: str = "it", done: int = 0) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.count = self._initial = done
        self._started = self._last_line = time.monotonic()
        self._info: dict[str, object] = {}
        self._bar = None
        if sys.stderr.isatty():
            options = {"initial": done, "smoothing": 0.1, "dynamic_ncols": True, "file": sys.stderr}
            self._bar = _Bar(total=total, desc=desc, unit=unit, bar_format=_Bar.FORMAT, **options)

    def update(self, n: int = 1, **info: object) -> None:
        """Count `n` more units; `info` is shown behind the counts, the last value of each name."""
        self.count += n
        self._info.update(info)
        if self._bar is not None:
            self._bar.set_postfix(self._info, refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        """The plain line: counts, rate, time left, figures."""
        elapsed = time.monotonic() - self._started
        rate = (self.count - self._initial) / elapsed if elapsed > 0 else 0.0
        of = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.desc}: {self.count}{of} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate * 60:.1f} {self.unit}/min")
            if self.total is not None:
                parts.append(f"{format_seconds((self.total - self.count) / rate)} left")
        parts += [f"{name} {value}" for name, value in self._info.items()]
        return " · ".join(parts)

    def close(self) -> None:
        """Finish: the bar is closed, or the last plain line printed with the time taken."""
        if self._bar is not None:
            self._bar.close()
            return
        took = format_seconds(time.monotonic() - self._started)
        print(f"{self._line()} · took {took}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
