"""The report of a label run: what it shows is what the run holds, in one file or in many."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_runs import make_label_run, write_lines

from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.report import data as report_data
from judge_pipeline.report.data import convert_offsets, load_labels, utf16_offset
from judge_pipeline.report.write import page_name, write_report


def island(path: Path, name: str) -> Any:
    html = path.read_text(encoding="utf-8")
    match = re.search(rf'<script type="application/json" id="data-{name}">(.*?)</script>', html, re.DOTALL)
    return json.loads(match[1]) if match else None


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(tmp_path):
    return make_label_run(tmp_path)


def utf16(text: str, start: int, end: int) -> str:
    """`text.slice(start, end)` as a browser does it."""
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


def test_every_answer_is_there_with_its_scores(run):
    index = island(write_report(run), "index")
    labels = rows(run / "labels.jsonl")
    assert len(index["rows"]) == len(labels)
    for row, label in zip(index["rows"], labels, strict=True):
        assert index["prompts"][row[0]][0] == label["prompt_id"]
        assert row[1] == label["response_id"]
        assert dict(zip(index["dimensions"], row[3], strict=True)) == pytest.approx(label["scores"])
        assert row[4] == (None if label["reward"] is None else pytest.approx(label["reward"], abs=1e-3))
        assert row[5] == label["status"]
        assert row[6] == [failure["reason"] for failure in label["failures"]]


def test_offsets_lead_a_browser_to_the_same_passage(run, tmp_path):
    details = island(write_report(run), "details")
    index = island(run / "report.html", "index")
    contexts = {row["id"]: row["context"] for row in rows(tmp_path / "prompts.jsonl")}
    assert any(ord(sign) > 0xFFFF for sign in contexts["vell-0001"])  # where offsets differ
    checked = 0
    for row, answer, label in zip(index["rows"], details["answers"], rows(run / "labels.jsonl"), strict=True):
        shown = details["documents"][row[0]]["context"]
        context = contexts[label["prompt_id"]]
        given = label["evidence"]["faithfulness"]["statements"]
        for ours, theirs in zip(answer["evidence"]["faithfulness"]["statements"], given, strict=True):
            for span, source in zip(ours["spans"], theirs["spans"], strict=True):
                assert utf16(shown, span["start"], span["end"]) == context[source["start"] : source["end"]]
                checked += 1
    assert checked > 50


@given(st.text(max_size=60), st.integers(-5, 70))
def test_utf16_offsets_are_those_of_utf16(text, offset):
    inside = min(max(offset, 0), len(text))
    assert utf16_offset(text)(offset) == len(text[:inside].encode("utf-16-le", "surrogatepass")) // 2


def test_only_offsets_are_converted():
    value = {"start": 2, "end": True, "id": 2, "deep": [{"end": 3, "start": "2"}], "score": 2.0}
    expected = {"start": 12, "end": True, "id": 2, "deep": [{"end": 13, "start": "2"}], "score": 2.0}
    assert convert_offsets(value, lambda offset: offset + 10) == expected


def test_ties_and_failures_are_counted_right(run):
    labels = load_labels(run / "labels.jsonl")
    source = rows(run / "labels.jsonl")
    tied = total = 0
    for prompt in {row["prompt_id"] for row in source}:
        scores = [row["scores"]["helpfulness"] for row in source if row["prompt_id"] == prompt]
        pairs = [*combinations(scores, 2)]
        total, tied = total + len(pairs), tied + sum(a == b for a, b in pairs)
    assert labels.tied_share("helpfulness") == pytest.approx(tied / total)
    expected = Counter(failure["reason"] for row in source for failure in row["failures"])
    assert labels.failures() == {"completeness": expected}
    html = write_report(run).read_text(encoding="utf-8")
    assert re.search(rf"truncated</td><td class=\"right\" data-sort=\"{expected['truncated']}\"", html)


def test_a_small_run_is_one_file_and_a_large_one_an_index_with_pages(tmp_path, monkeypatch):
    run = make_label_run(tmp_path, prompts=5, answers=4, lines=2)
    whole = island(write_report(run), "index")
    assert not (run / "report").exists()
    monkeypatch.setattr(report_data, "PAGE_ANSWERS", 8)
    report = write_report(run)
    index = island(report, "index")
    assert [first for first, _ in index["pages"]] == [1, 9, 17]
    assert island(report, "details") is None
    assert index["rows"] == whole["rows"]
    assert index["prompts"] == whole["prompts"]
    found = []
    for number, (first, name) in enumerate(index["pages"], start=1):
        page = island(run / name, "index")
        assert page["first"] == first
        assert len(island(run / name, "details")["answers"]) == len(page["rows"])
        assert (run / "report" / page["home"]).resolve() == report.resolve()
        assert page["before"] == (page_name(number - 1) if number > 1 else None)
        assert page["after"] == (page_name(number + 1) if number < 3 else None)
        found += [[page["prompts"][row[0]][0], *row[1:]] for row in page["rows"]]
    assert found == [[whole["prompts"][row[0]][0], *row[1:]] for row in whole["rows"]]


def test_long_documents_make_pages_too(tmp_path, monkeypatch):
    run = make_label_run(tmp_path, prompts=3, answers=1, lines=20)
    monkeypatch.setattr(report_data, "PAGE_CHARACTERS", 4000)
    assert len(island(write_report(run), "index")["pages"]) == 3


def test_pages_of_an_earlier_larger_report_go(tmp_path, monkeypatch):
    run = make_label_run(tmp_path, prompts=3, answers=2, lines=1)
    with monkeypatch.context() as patch:
        patch.setattr(report_data, "PAGE_ANSWERS", 2)
        write_report(run)
    assert len([*(run / "report").glob("*.html")]) == 3
    write_report(run)
    assert [*(run / "report").glob("*.html")] == []


def test_a_run_that_goes_on_shows_what_waits_and_forgives_a_torn_row(run):
    lines = (run / "labels.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "labels.jsonl").write_text("".join(lines[:6]) + lines[6][:100], encoding="utf-8")
    html = write_report(run).read_text(encoding="utf-8")
    assert "6 answers have no label yet" in html
    assert "last row of labels.jsonl is torn" in html
    states = Counter(row[5] for row in island(run / "report.html", "index")["rows"])
    assert states[report_data.UNLABELLED] == 6


def test_a_broken_row_elsewhere_is_an_error_with_its_line(run):
    lines = (run / "labels.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    lines[2] = '{"prompt_id": \n'
    (run / "labels.jsonl").write_text("".join(lines) + '{"torn', encoding="utf-8")
    with pytest.raises(DataError, match="line 3"):
        write_report(run)


def test_without_prompts_labels_are_still_shown(run, tmp_path):
    (tmp_path / "prompts.jsonl").unlink()
    html = write_report(run).read_text(encoding="utf-8")
    assert "prompts.jsonl is not there, so documents and answers are not shown" in html
    index, details = island(run / "report.html", "index"), island(run / "report.html", "details")
    assert len(index["rows"]) == 12
    assert details["answers"][0]["text"] is None
    assert details["answers"][0]["evidence"]["faithfulness"]["statements"]


def test_a_run_that_was_moved_with_its_prompts_finds_them(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    run.rename(elsewhere)
    (tmp_path / "prompts.jsonl").rename(elsewhere / "prompts.jsonl")
    write_report(elsewhere)
    assert island(elsewhere / "report.html", "details")["documents"][0]["context"]


def test_neither_summary_nor_settings_are_needed(run):
    (run / "summary.json").unlink()
    (run / "run.yaml").unlink()
    html = write_report(run).read_text(encoding="utf-8")
    assert "no run.yaml" in html
    assert "108,000" in html  # input tokens, from the labels' own usage


def test_a_fifth_dimension_and_unknown_evidence_are_shown(run):
    labels = rows(run / "labels.jsonl")
    for number, label in enumerate(labels):
        label["scores"] = {"brevity": float(number % 10), **label["scores"]}
        label["evidence"]["brevity"] = {"analysis": "Short enough.", "words": 17}
    labels[0]["evidence"] = {"faithfulness": None, "odd": ["list"], "completeness": {"key_points": "none"}}
    write_lines(run / "labels.jsonl", labels)
    index = island(write_report(run), "index")
    assert index["dimensions"] == ["helpfulness", "logicality", "faithfulness", "completeness", "brevity"]
    assert "Distribution of brevity" in (run / "report.html").read_text(encoding="utf-8")
    assert island(run / "report.html", "details")["answers"][1]["evidence"]["brevity"]["words"] == 17


def test_costs_of_the_last_run_and_of_all(run):
    html = write_report(run).read_text(encoding="utf-8")
    spent = html[html.index('<section id="spent"') : html.index('<section id="run"')]
    assert "all runs" in spent
    for figure in ("144", "147", "108,000", "109,200", "0.148"):
        assert figure in spent
    assert "1 answer" not in spent


def test_a_run_stopped_by_a_limit_says_so(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "stopped": "--max-calls 100 reached"}))
    assert "The run was stopped: --max-calls 100 reached" in write_report(run).read_text(encoding="utf-8")


def test_missing_or_broken_inputs_are_named(run, tmp_path):
    with pytest.raises(UserError, match=r"labels\.jsonl is not there"):
        write_report(tmp_path / "nowhere")
    (run / "summary.json").write_text("{torn")
    with pytest.raises(DataError, match=r"summary\.json"):
        write_report(run)


def test_hostile_text_stays_text(run, tmp_path):
    evil = "</script><script>alert(1)</script><!-- \u2028 "
    prompts = rows(tmp_path / "prompts.jsonl")
    prompts[0]["context"] = evil + prompts[0]["context"]
    prompts[0]["query"] = prompts[0]["responses"][0]["text"] = evil
    labels = rows(run / "labels.jsonl")
    evil += "\ud800"  # prompts are refused with half a character; a judge may still write one
    labels[0]["evidence"]["helpfulness"]["analysis"] = evil
    labels[0]["failures"] = [{"dimension": evil, "reason": evil, "detail": evil}]
    for path, content in ((tmp_path / "prompts.jsonl", prompts), (run / "labels.jsonl", labels)):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in html
    shown = island(run / "report.html", "details")["answers"][0]
    assert shown["evidence"]["helpfulness"]["analysis"] == evil.replace("\ud800", "?")
