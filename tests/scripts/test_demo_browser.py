"""The quickstart's page in a real Chromium: wide and narrow, light and dark, nothing spills over and nothing is fetched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from scripts.demo import report
from tests.browser import MARKS, Reader, start
from tests.scripts.test_demo_report import made  # noqa: F401 - a fixture

pytestmark = MARKS
WIDTHS = (1300, 400)
SHOTS = os.environ.get("SCREENSHOTS")
"""A folder for pictures of the page, for someone to look at."""


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Path:  # noqa: F811
    run = shutil.copytree(made, tmp_path_factory.mktemp("page") / "run")
    assert report.main([str(run)]) == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def reader():
    driver = start()
    yield Reader(driver)
    driver.quit()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_spills_over_the_page(reader, page, width, theme):
    driver = reader.driver
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    reader.open(page)
    assert reader.run("document.documentElement.scrollWidth") <= width
    for details in reader.all("details"):
        driver.execute_script("arguments[0].open = true", details)
    assert reader.run("document.documentElement.scrollWidth") <= width
    # A table may scroll in its own box; none is cut.
    cut = """[...document.querySelectorAll('table')].filter(t => {
        const box = t.closest('.table') ?? t.parentElement;
        return t.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX === 'hidden' }).length"""
    assert reader.run(cut) == 0
    dark = reader.run("getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in dark.removeprefix("rgb(").rstrip(")").split(",")[:3]]
    assert (sum(channels) < 200) is (theme == "dark")
    assert not [line for line in reader.complaints() if "SEVERE" in line]
    if SHOTS:
        for details in reader.all("details"):
            driver.execute_script("arguments[0].open = false", details)
        height = reader.run("document.documentElement.scrollHeight")
        shot = {"width": width, "height": min(height, 6000), "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shot)
        driver.save_screenshot(str(Path(SHOTS) / f"quickstart-{width}-{theme}.png"))


def test_the_claim_is_on_the_first_screen_and_statements_open_on_a_click(reader, page):
    driver = reader.driver
    size = {"width": 1300, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    reader.open(page)
    claim = reader.one("#proof .claim")
    assert claim.location["y"] + claim.size["height"] < 900
    assert reader.one("#proof table").location["y"] < 900
    summary = next(one for one in reader.all("#documents article summary") if one.is_displayed())
    driver.execute_script("arguments[0].scrollIntoView()", summary)
    inside = summary.find_element("xpath", "..").find_elements("css selector", "li")
    assert inside
    assert not inside[0].is_displayed()
    summary.click()
    assert inside[0].is_displayed()
    mark = reader.one("#documents mark.flag")
    assert mark.get_attribute("title").startswith("support ")
