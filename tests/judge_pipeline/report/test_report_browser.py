"""The reports in a real Chromium: clicks and keys do what they promise, light and dark are readable, nothing is fetched."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_runs import make_label_run
from selenium.webdriver.common.keys import Keys

from judge_pipeline.report import data as report_data
from judge_pipeline.report.write import write_report
from tests.browser import MARKS, Reader, start

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = start()
    yield driver
    driver.quit()


@pytest.fixture
def reader(browser) -> Iterator[Reader]:
    browser.get_log("browser")
    found = Reader(browser)
    yield found
    assert found.complaints() == []  # no script error, nothing that the policy had to stop


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_report(make_label_run(tmp_path_factory.mktemp("small"), prompts=4, answers=5))


@pytest.fixture(scope="module")
def paged(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_data, "PAGE_ANSWERS", 8)
        yield write_report(make_label_run(tmp_path_factory.mktemp("paged"), prompts=5, answers=4, lines=3))


def shown_ids(reader: Reader) -> list[str]:
    return reader.run(
        "[...document.querySelectorAll('#answers-table tbody tr')].map((row) => row.cells[0].textContent)"
    )


def column(reader: Reader, at: int) -> list[str]:
    return reader.run(
        f"[...document.querySelectorAll('#answers-table tbody tr')].map((row) => row.cells[{at}].textContent)"
    )


def test_one_click_opens_an_answer_with_verdicts_evidence_and_analysis(reader, small):
    reader.open(small)
    reader.all("#answers-table tbody tr")[2].click()
    reader.wait(lambda: reader.reading)
    assert reader.text("#viewer-title") == "Answer 3"
    words = reader.text("#viewer-answer")
    for expected in (
        "It answers what was asked",
        "The steps follow",
        "The tax is missing",
        "not supported",
        "covered",
        "missed",
    ):
        assert expected in words
    items = reader.all(".item")
    kinds = [re.search(r"full|partial|none", item.get_attribute("class")).group() for item in items]
    assert kinds == ["full", "full", "none", "partial", "full", "full", "none"]
    assert reader.all("#viewer-document .on") == []
    items[2].click()
    marked = "".join(found.text for found in reader.all("#viewer-document .on.none"))
    assert (
        "The council paid for the mole with a tax on salt, which was lifted when the last bond was redeemed."
        in marked
    )
    assert "The segment says otherwise." in reader.text("#viewer-answer")
    ranks = [found.get_attribute("data-rank") for found in reader.all("#viewer-document .on[data-rank]")]
    assert sorted(ranks) == ["1", "2"]
    items[4].click()  # beyond an emoji: offsets count as the browser does
    assert reader.all("#viewer-document .on.none") == []
    assert {found.text for found in reader.all("#viewer-document .on.full")} == {
        "Old maps show the islet 🏝 that was blown up to widen the entrance."
    }
    visible = reader.run(
        "(() => { const box = document.querySelector('#viewer-document [data-rank=\"1\"]').getBoundingClientRect();"
        "const pane = document.querySelector('#viewer-document').getBoundingClientRect();"
        "return box.top >= pane.top && box.bottom <= pane.bottom; })()"
    )
    assert visible


def test_verdicts_differ_by_colour_and_by_glyph(reader, small):
    reader.open(small, "#answer-1")
    looks = reader.run(
        "['full', 'partial', 'none'].map((kind) => { const item = document.querySelector('.item.' + kind);"
        "return [getComputedStyle(item.querySelector('.verdict')).color, item.querySelector('.glyph').textContent]; })"
    )
    assert len({colour for colour, _ in looks}) == 3
    assert len({glyph for _, glyph in looks}) == 3


def test_the_keyboard_alone_is_enough(reader, small):
    reader.open(small)
    reader.press("j")
    assert reader.run("document.activeElement.rowIndex") == 1
    reader.press("j", "j", "k", Keys.ARROW_DOWN)
    assert reader.run("document.activeElement.rowIndex") == 3
    assert reader.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    reader.press(Keys.ENTER)
    reader.wait(lambda: reader.reading)
    assert reader.text("#viewer-title") == "Answer 3"
    reader.press("j")
    assert "The harbour was deepened in 1874." in reader.focused
    reader.press("j", Keys.ARROW_DOWN, Keys.ENTER)
    assert reader.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert reader.all("#viewer-document .on.none")
    reader.press(Keys.ARROW_RIGHT)
    reader.wait(lambda: reader.text("#viewer-title") == "Answer 4")
    assert reader.run("location.hash") == "#answer-4"
    reader.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    reader.wait(lambda: reader.text("#viewer-title") == "Answer 2")
    reader.press(Keys.ESCAPE)
    reader.wait(lambda: not reader.reading)
    reader.wait(lambda: reader.run("document.activeElement.rowIndex") == 2)  # back where one was
    reader.press("/")
    assert reader.run("document.activeElement.id") == "filter"
    reader.press("jk")  # letters are letters there
    assert reader.run("document.activeElement.value") == "jk"


def test_focus_stays_in_the_open_answer(reader, small):
    reader.open(small, "#answer-1")
    reader.wait(lambda: reader.reading)
    for _ in range(40):
        reader.press(Keys.TAB)
        # The browser's own bars may take focus in between; the page behind may not.
        assert reader.run(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )


def test_sorting_is_by_number_and_leaves_what_is_missing_last(reader, small):
    reader.open(small)
    head = reader.all("#answers-table th button")[6]
    assert head.text == "completeness"
    head.click()
    low = column(reader, 6)
    numbers = [float(value) for value in low if value != "–"]
    assert numbers == sorted(numbers)
    assert low[len(numbers) :] == ["–"] * (20 - len(numbers))
    assert len(numbers) < 20
    assert reader.all("#answers-table th")[6].get_attribute("aria-sort") == "ascending"
    head.click()
    high = column(reader, 6)
    assert [float(value) for value in high if value != "–"] == sorted(numbers, reverse=True)
    assert high[-1] == "–"
    first = shown_ids(reader)[1]
    reader.all("#answers-table tbody tr")[0].click()
    reader.wait(lambda: reader.reading)
    reader.press(Keys.ARROW_RIGHT)  # onward as the table is sorted
    reader.wait(lambda: reader.text("#viewer-title") == f"Answer {first}")


def test_filtering_by_words_and_by_state(reader, small):
    reader.open(small)
    reader.one("#filter").send_keys("chapter 2 a3")
    reader.wait(lambda: reader.text("#count") == "1 of 20 answers")
    assert shown_ids(reader) == ["9"]
    reader.one("#filter").send_keys(Keys.ESCAPE)
    assert len(shown_ids(reader)) == 20
    reader.run("document.querySelector('#state option[value=truncated]').selected = true")
    reader.run("document.querySelector('#state').dispatchEvent(new Event('change'))")
    assert set(column(reader, 6)) == {"–"}
    assert reader.text("#count").endswith("of 20 answers")


def test_an_answer_has_an_address_of_its_own(reader, small):
    reader.open(small, "#answer-7")
    assert reader.reading
    assert reader.text("#viewer-title") == "Answer 7"
    reader.run("history.replaceState(null, '', '#answer-999')")
    reader.run("dispatchEvent(new HashChangeEvent('hashchange'))")
    assert not reader.reading


def test_a_failure_shows_its_typed_reason(reader, small):
    reader.open(small)
    reader.run("document.querySelector('#state option[value=partial]').selected = true")
    reader.run("document.querySelector('#state').dispatchEvent(new Event('change'))")
    reader.all("#answers-table tbody tr")[0].click()
    reader.wait(lambda: reader.reading)
    assert "truncated · the reply ended at the token limit" in reader.text("#viewer-answer")
    assert "no score" in reader.text("#viewer-answer")


def test_ten_thousand_answers_stay_quick_to_use(reader, tmp_path):
    """The index lays out a hundred rows, not ten thousand; sorting, filtering and jumping to the end all work."""
    run = make_label_run(tmp_path, prompts=1000, answers=10, lines=1)
    report = write_report(run)
    assert len([*(run / "report").glob("*.html")]) == 50
    reader.open(report)
    assert reader.text("#count") == "10,000 answers"
    assert 0 < len(reader.all("#answers-table tbody tr")) <= 500
    reader.one("#filter").send_keys("vell-0777")
    reader.wait(lambda: reader.text("#count") == "10 of 10,000 answers")
    reader.press(Keys.ENTER)
    reader.press(Keys.ENTER)
    reader.wait(lambda: "answers-0039.html#answer-7761" in reader.driver.current_url)
    reader.wait(lambda: reader.reading)
    assert reader.text("#viewer-title") == "Answer 7,761"
    assert "as told in chapter 777?" in reader.text("#viewer-answer")


def test_scrolling_brings_more_rows(reader, tmp_path):
    reader.open(write_report(make_label_run(tmp_path, prompts=40, answers=10, lines=1)))
    before = len(shown_ids(reader))
    assert before < 400
    reader.run("document.querySelector('#more').scrollIntoView()")
    reader.wait(lambda: len(shown_ids(reader)) > before)
    reader.press("j", Keys.END)
    assert len(shown_ids(reader)) == 400
    assert reader.run("document.activeElement.rowIndex") == 400


def test_pages_lead_to_one_another_and_back(reader, paged):
    reader.open(paged)
    reader.all("#answers-table tbody tr")[7].click()
    reader.wait(lambda: reader.driver.current_url.endswith("report/answers-0001.html#answer-8"))
    reader.wait(lambda: reader.reading)
    reader.press(Keys.ARROW_RIGHT)
    reader.wait(lambda: reader.driver.current_url.endswith("report/answers-0002.html#answer-9"))
    reader.wait(lambda: reader.reading)
    reader.press(Keys.ARROW_LEFT)
    reader.wait(lambda: reader.driver.current_url.endswith("report/answers-0001.html#answer-8"))
    reader.wait(lambda: reader.reading)
    reader.press(Keys.ESCAPE)
    reader.wait(lambda: not reader.reading)
    reader.one("a.back").click()
    reader.wait(lambda: reader.driver.current_url.endswith("report.html#answers"))


def test_hostile_text_is_shown_and_not_run(reader, tmp_path):
    run = make_label_run(tmp_path, prompts=1, answers=2)
    evil = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    for path in (tmp_path / "prompts.jsonl", run / "labels.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            if "context" in row:
                row["query"] = evil
                row["responses"][0]["text"] = evil
                row["context"] += evil
            else:
                row["evidence"]["helpfulness"] = {"analysis": evil, evil: evil}
                row["evidence"]["faithfulness"]["statements"][0] |= {
                    "text": evil,
                    "verdict": evil,
                    "analysis": evil,
                }
                row["failures"] = [{"dimension": "helpfulness", "reason": evil, "detail": evil}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reader.open(write_report(run), "#answer-1")
    assert reader.reading
    assert evil in reader.text("#viewer-answer")
    assert evil in reader.text("#viewer-document")
    assert reader.driver.title == "Judge's labels"
    assert reader.all("img") == []


def test_odd_evidence_does_not_stop_the_viewer(reader, tmp_path):
    run = make_label_run(tmp_path, prompts=1, answers=6)
    rows = [json.loads(line) for line in (run / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    odd = [
        {},
        {"faithfulness": None, "completeness": "text", "new": [1, 2]},
        {
            "faithfulness": {
                "statements": [None, "x", {"spans": [{"start": -1, "end": 9e9}, {"start": 5, "end": 2}, {}]}]
            }
        },
        {
            "completeness": {
                "key_points": [{"text": None}, {"start": "1", "end": 2}],
                "coverage": [{"key_point": 0, "covered": True}],
            }
        },
        {
            "faithfulness": {"statements": [], "rule": "no_statements:10"},
            "helpfulness": {"votes": [1, None], "spread": None},
        },
        {"brevity": {"analysis": "Short.", "words": 3}},
    ]
    for row, evidence in zip(rows, odd, strict=True):
        row["evidence"] = evidence
    (run / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = write_report(run)
    for number in range(1, 7):
        reader.open(report, f"#answer-{number}")
        assert reader.reading
        for item in reader.all(".item"):
            item.click()
    assert "Short." in reader.text("#viewer-answer")
    reader.open(report, "#answer-5")
    assert "Scored by rule: no statements:10" in reader.text("#viewer-answer")


CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => { for (let e = element; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor); if (colour[3] === 255) return colour; } return [255, 255, 255]; };
  const seen = [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.matches('option, script, style, :disabled')
    && [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return seen.map((e) => { const svg = e.namespaceURI.endsWith('svg'); const style = getComputedStyle(e);
    const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(ground(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 30)]; })
    .filter(([ratio]) => ratio < 4.5);
})()
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_word_has_contrast_in_light_and_dark(reader, small, theme):
    """WCAG 2.2 AA: 4.5 to 1 between text and what lies behind it, on the overview and in an open answer."""
    reader.open(small)
    reader.run(f"document.documentElement.dataset.theme = '{theme}'")
    assert reader.run(CONTRAST) == []
    assert reader.run(
        "getComputedStyle(document.body).colorScheme || getComputedStyle(document.documentElement).colorScheme"
    )
    ground = reader.run("getComputedStyle(document.body).backgroundColor")
    red = int(re.search(r"\d+", ground).group())
    assert (red < 60) == (theme == "dark")
    reader.run("location.hash = '#answer-1'")
    reader.wait(lambda: reader.reading)
    for item in reader.all(".item"):
        item.click()
        assert reader.run(CONTRAST) == []
    keep_screenshot(reader, f"answer-{theme}")
    reader.press(Keys.ESCAPE)
    keep_screenshot(reader, f"overview-{theme}")


def keep_screenshot(reader: Reader, name: str) -> None:
    """A picture to look at, in the directory that SCREENSHOTS names."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        reader.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_the_system_decides_between_light_and_dark_until_the_reader_does(small):
    driver = start("--blink-settings=preferredColorScheme=0")
    try:
        reader = Reader(driver)
        reader.open(small)
        dark = reader.run("getComputedStyle(document.body).backgroundColor")
        reader.one("#theme").click()
        assert reader.text("#theme") == "Light"
        light = reader.run("getComputedStyle(document.body).backgroundColor")
        assert light != dark
        reader.one("#theme").click()
        assert reader.text("#theme") == "Dark"
        assert reader.run("getComputedStyle(document.body).backgroundColor") == dark
    finally:
        driver.quit()


def test_nothing_is_fetched(reader, small):
    reader.driver.get_log("performance")
    reader.open(small, "#answer-2")
    requests = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in reader.driver.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert {url.partition("#")[0] for url in requests} <= {small.resolve().as_uri(), "about:blank"}


@pytest.mark.parametrize("width", [400, 760, 1360])
def test_no_width_makes_the_page_scroll_sideways(reader, small, width):
    try:
        reader.driver.set_window_size(width, 900)
        reader.open(small)
        assert reader.run("document.documentElement.scrollWidth <= innerWidth")
        reader.run("location.hash = '#answer-1'")
        reader.wait(lambda: reader.reading)
        panes = reader.run(
            "[...document.querySelectorAll('.pane')].map((e) => [e.scrollWidth - e.clientWidth, e.clientHeight])"
        )
        assert all(over <= 1 and height > 150 for over, height in panes)
    finally:
        reader.driver.set_window_size(1360, 950)
