"""Plain progress lines carry counts, time left and figures."""

from __future__ import annotations

import io
import sys

import pytest

from judge_pipeline.common import progress
from judge_pipeline.common.progress import Progress


def test_lines_count_estimate_and_name_figures(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress(10, "label", "answers", done=2) as bar:
        clock[0] = 20.0
        bar.update(2, failures=1)
        bar.update(2)
        clock[0] = 40.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "label: 4/10 answers · 6.0 answers/min · 1 min 00 s left · failures 1"
    assert "6/10" in lines[-1]
    assert "took 40 s" in lines[-1]
    assert len(lines) == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("total", [10, None])
def test_a_terminal_gets_a_bar_that_counts_by_the_minute(monkeypatch, total):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(total, "label", "answers") as bar:
        for _ in range(4):
            bar.update(1, cost="0.12", failed=1)
    shown = screen.getvalue().split("\r")[-1]
    assert f"4/{total or '?'}" in shown
    assert " answers/min" in shown
    assert "cost=0.12" in shown
    assert "failed=1" in shown
