"""A page in headless Chromium, without network, and what it says of itself."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]
needs_chromium = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} cannot be found: apt install chromium chromium-driver"
)


class Page:
    """An open page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        """Load a file and wait until all of it is drawn."""
        self.driver.get(path.as_uri())
        WebDriverWait(self.driver, 60).until(
            lambda _: self.run("return performance.getEntriesByName('complete').length")
        )

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def becomes(self, script: str, value: object) -> bool:
        """Whether a script's result is, or soon will be, this: what the browser is told to emulate takes a moment."""
        try:
            return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: self.run(script) == value)
        except TimeoutException:
            return False

    def element(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Text of all matching elements as a screen reader has it, also of those that are scrolled away."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map((e) => { const copy = e.cloneNode(true);"
            "copy.querySelectorAll('[aria-hidden]').forEach((one) => one.remove()); return copy.textContent; })"
        )
        return self.run(script, selector)

    def click(self, selector: str) -> None:
        found = self.element(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def choose(self, identity: str, value: str) -> None:
        Select(self.element(f"#{identity}")).select_by_value(value)

    def choices(self, identity: str) -> list[str]:
        return self.texts(f"#{identity} option")

    def traces(self) -> list[dict[str, Any]]:
        """What the chart draws and names."""
        script = (
            "return document.getElementById('chart').data.filter((t) => t.name)"
            ".map((t) => ({name: t.name, x: [...t.x], y: [...t.y], text: t.text}))"
        )
        return self.run(script)

    def drawn_after(self) -> float:
        """Seconds from the start of loading to the frame after the first chart."""
        return self.run("return performance.getEntriesByName('drawn')[0].startTime") / 1000

    def complaints(self) -> list[str]:
        """Console messages since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser without window. The driver's path is given, so that nothing is looked for or fetched."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.binary_location = str(PROGRAMS["chromium"])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(PROGRAMS["chromedriver"])))
    try:
        yield Page(driver)
    finally:
        driver.quit()
