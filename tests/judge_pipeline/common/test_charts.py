"""Charts and tables: the right numbers in the right places, text as text, and no surprise on odd input."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge_pipeline.common.html.charts import MAX_POINTS, bars, histogram, line, scatter, stat_tiles, table
from judge_pipeline.common.html.page import Markup
from judge_pipeline.common.html.svg import ticks

EVIL = '</svg><script>alert("1")</script>\'"&'
numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)
points = st.lists(st.tuples(numbers, numbers), max_size=30)


def parsed(html: Markup) -> ET.Element:
    """Everything the charts write is well-formed XML, which a stray `<` or quote would break."""
    return ET.fromstring(
        f"<root>{html}</root>".replace("<br>", "<br/>").replace(" data-sortable", ' data-sortable=""')
    )


def texts(html: Markup, tag: str) -> list[str]:
    return ["".join(found.itertext()) for found in parsed(html).iter(tag)]


def test_a_histogram_has_the_counts_of_numpy():
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(5, 1, 300), "b": rng.normal(7, 2, 50)}
    html = histogram(values, 8, "score")
    _, edges = np.histogram(np.concatenate([*values.values()]), bins=8)
    expected = [count for series in values.values() for count in np.histogram(series, bins=edges)[0] if count]
    shown = [int(tip.rsplit(": ", 1)[1].replace(",", "")) for tip in texts(html, "title")]
    assert shown == expected
    assert f"n 300 · mean {values['a'].mean():.2f}" in html


def test_bars_of_a_histogram_are_as_high_as_their_counts():
    html = histogram({"a": [1] * 8 + [2] * 4}, [0.5, 1.5, 2.5], "x")
    heights = [float(found.get("height", "")) for found in parsed(html).iter("rect")]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)


def test_percent_makes_series_of_unequal_size_compare():
    html = histogram(
        {"many": [1.0] * 90 + [2.0] * 10, "few": [1.0] * 9 + [2.0]}, [0.5, 1.5, 2.5], "x", percent=True
    )
    assert [tip.rsplit(": ", 1)[1] for tip in texts(html, "title")] == ["90%", "10%", "90%", "10%"]


def test_what_is_missing_or_not_finite_is_left_out_and_said():
    html = scatter({"a": [(1, 2), (math.nan, 1), (3, math.inf)]}, "x", "y")
    assert len(texts(html, "title")) == 1
    assert "2 points have no finite value" in html
    assert "No values" in histogram({"a": []}, 5, "x")
    assert "No values" in histogram({}, 5, "x")
    assert "No values" in line({"a": []}, "x", "y")
    assert "No values" in bars({"a": math.nan}, "x")


def test_a_scatter_draws_higher_values_higher_and_a_diagonal_where_both_are_equal():
    html = scatter({"a": [(0.0, 0.0), (10.0, 10.0), (5.0, 2.0)]}, "judge", "model", diagonal=True)
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in parsed(html).iter("circle")]
    (reference,) = [found for found in parsed(html).iter("line") if found.get("class") == "reference"]
    x1, y1, x2, y2 = (float(reference.get(name, "")) for name in ("x1", "y1", "x2", "y2"))
    for x, y in circles[:2]:
        assert y == pytest.approx(y1 + (x - x1) * (y2 - y1) / (x2 - x1), abs=0.2)
    assert circles[1][1] < circles[0][1]
    assert circles[2][1] > y1 + (circles[2][0] - x1) * (y2 - y1) / (x2 - x1)  # below: the model says less


def test_long_series_are_thinned_and_keep_their_ends():
    html = line({"loss": [(step, 1 / (step + 1)) for step in range(20_000)]}, "step", "loss")
    (curve,) = [found.get("points", "") for found in parsed(html).iter("polyline")]
    assert len(curve.split()) <= MAX_POINTS
    assert "of 20,000 points are drawn" in html
    short = line({"loss": [(0, 1.0), (19_999, 1 / 20_000)]}, "step", "loss")
    (ends,) = [found.get("points", "") for found in parsed(short).iter("polyline")]
    assert [curve.split()[0], curve.split()[-1]] == ends.split()


def test_lines_go_by_x_whatever_the_order():
    a = line({"a": [(3, 1), (1, 2), (2, 5)]}, "x", "y")
    assert a == line({"a": [(1, 2), (2, 5), (3, 1)]}, "x", "y")


def test_series_differ_by_more_than_colour():
    marks = scatter({name: [(i, i)] for i, name in enumerate("abc")}, "x", "y")
    drawn = [found for group in parsed(marks).iter("g") for found in group]
    assert len({(found.tag, re.sub(r"[\d. -]+", "", found.get("d", ""))) for found in drawn}) == 3
    curves = line({name: [(0, i), (1, i)] for i, name in enumerate("abc")}, "x", "y")
    assert len({found.get("stroke-dasharray") for found in parsed(curves).iter("polyline")}) == 3
    assert texts(curves, "li") == ["a", "b", "c"]


def test_bars_start_at_zero_and_whiskers_span_their_interval():
    html = bars({"plus": 0.5, "minus": -0.25}, "ρ", {"plus": (0.25, 0.75)})
    rects = [(float(r.get("x", "")), float(r.get("width", ""))) for r in parsed(html).iter("rect")]
    assert rects[0][0] == pytest.approx(rects[1][0] + rects[1][1], abs=0.2)
    assert rects[0][1] == pytest.approx(2 * rects[1][1], abs=0.2)
    whisker = next(found for found in parsed(html).iter("line") if found.get("class") == "whisker")
    length = float(whisker.get("x2", "")) - float(whisker.get("x1", ""))
    assert length == pytest.approx(rects[0][1], abs=0.2)


def test_hostile_names_stay_text_in_every_chart():
    for html in (
        histogram({EVIL: [1, 2]}, 2, EVIL),
        line({EVIL: [(0, 1), (1, 2)], "b": [(0, 1)]}, EVIL, EVIL),
        scatter({EVIL: [(0, 1)], "b": [(0, 1)]}, EVIL, EVIL, diagonal=True),
        bars({EVIL: 1.0}, EVIL, {EVIL: (0, 2)}),
        table([EVIL, "b"], [[EVIL, 1], [EVIL, 2]], caption=EVIL),
        stat_tiles([(EVIL, EVIL, EVIL)]),
    ):
        assert "<script" not in html
        assert EVIL in "".join(parsed(html).itertext()) or EVIL in str(
            [e.attrib for e in parsed(html).iter()]
        )


@given(st.dictionaries(st.sampled_from("abc"), points, max_size=3))
def test_any_points_can_be_drawn(series):
    for html in (line(series, "x", "y"), scatter(series, "x", "y"), scatter(series, "x", "y", diagonal=True)):
        parsed(html)
        assert "nan" not in html
        assert not re.search(r'"-?inf', html)


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(numbers, max_size=20), max_size=3), st.integers(1, 20)
)
def test_any_values_can_be_counted(series, bins):
    parsed(histogram(series, bins, "x"))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9))
def test_ticks_are_round_inside_and_not_too_many(low, width):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 12
    assert all(low - 1e-6 * width <= value <= low + (1 + 1e-6) * width for value in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0], rtol=1e-3)
    digit = f"{steps[0]:.2e}"[0]
    assert digit in "125"


def test_a_single_value_has_a_tick():
    assert ticks(3.0, 3.0) == [3.0]


def test_tables_sort_by_value_and_show_what_reads_well():
    html = table(["name", "n"], [["a", 12345], ["b", None], ["c", 3]])
    assert texts(html, "td") == ["a", "12,345", "b", "–", "c", "3"]
    cells = [*parsed(html).iter("td")]
    assert [cell.get("data-sort") for cell in cells[1::2]] == ["12345", "", "3"]
    assert {cell.get("class") for cell in cells[1::2]} == {"right"}
    assert len(texts(html, "button")) == 2
    assert "button" not in table(["name"], [["a"], ["b"]], sortable=False)


def test_table_cells_may_hold_html_of_ours_only():
    html = table(["a", "b"], [[Markup("<b>bold</b>"), "<b>plain</b>"]])
    assert "<b>bold</b>" in html
    assert "&lt;b&gt;plain" in html


def test_tables_refuse_rows_and_columns_that_do_not_fit():
    with pytest.raises(ValueError, match="1 cells where the table has 2"):
        table(["a", "b"], [["only one"]])
    with pytest.raises(ValueError, match="left or right"):
        table(["a", "b"], [[1, 2]], align=["left"])
    with pytest.raises(ValueError, match="left or right"):
        table(["a"], [[1]], align=["centre"])
