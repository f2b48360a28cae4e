"""A real Chromium for tests of pages: what is installed, how it is started, and someone who reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
    pytest.mark.skipif(
        DRIVER is None, reason="chromedriver is not installed (apt-get install chromium-driver)"
    ),
]
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1360,950",
    "--force-prefers-reduced-motion",  # a page that still glides is clicked in the wrong place
)


class Reader:
    """Someone who reads a report: opens files, presses keys, clicks."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, fragment: str = "") -> None:
        self.driver.get("about:blank")  # a new fragment alone would not load the file again
        self.driver.get(path.resolve().as_uri() + fragment)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def run(self, script: str) -> Any:
        return self.driver.execute_script("return " + script.strip())

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 10).until(lambda _: condition())

    @property
    def reading(self) -> bool:
        return bool(self.run("!!document.querySelector('dialog')?.open"))

    @property
    def focused(self) -> str:
        return self.run("document.activeElement.textContent")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


def start(*switches: str) -> Any:
    options = webdriver.ChromeOptions()
    for switch in (*SWITCHES, *switches):
        options.add_argument(switch)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))
