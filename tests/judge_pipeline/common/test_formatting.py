"""Numbers and durations read well."""

from __future__ import annotations

import math

import pytest

from judge_pipeline.common.formatting import format_percent, format_seconds, format_value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.5, "0.5"),
        (1.23456, "1.235"),
        (1234.5, "1,234"),
        (0.00012, "0.00012"),
        (-0.25, "-0.25"),
        (math.nan, "–"),
        ("as it is", "as it is"),
    ],
)
def test_values_read_well(value, shown):
    assert format_value(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.44, "0.4 s"),
        (38, "38 s"),
        (59.7, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7800, "2 h 10 min"),
        (None, "–"),
    ],
)
def test_durations_read_well(seconds, shown):
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0%"), (0.125, "12.5%"), (0.00001, "< 0.1%"), (0.9999, "> 99.9%"), (1.0, "100%")],
)
def test_shares_do_not_claim_all_or_nothing_wrongly(share, shown):
    assert format_percent(share) == shown
