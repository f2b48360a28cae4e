"""Numbers and durations as a reader wants them, in reports and on the terminal."""

from __future__ import annotations

import math


def format_value(value: object) -> str:
    """A number with thousands separated and three significant decimals at most; ``–`` for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 0.001:
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return f"{value:.2g}"


def format_seconds(seconds: float | None) -> str:
    """A duration such as ``0.4 s``, ``38 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def format_percent(share: float) -> str:
    """A share of 1 in percent: ``12.5%``. What is not all does not read as 100%, what is not nothing not as 0%."""
    shown = f"{share * 100:.1f}"
    if share < 1 and shown == "100.0":
        shown = "> 99.9"
    if share > 0 and shown == "0.0":
        shown = "< 0.1"
    return shown.removesuffix(".0") + "%"
