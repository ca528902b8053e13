"""The page in a real browser: every control, its numbers, a phone, the keyboard, and 200 runs."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student
from selenium.webdriver.common.keys import Keys

from longctx_rl.report.page import document
from longctx_rl.runs.metrics import read_metrics
from report.browser import Page, chromium, needs_chromium
from report.synthetic import METHODS, write_runs

pytestmark = needs_chromium
SEEDS, STEPS = 3, 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 runs of which two have problems, and a third that repeats one of them."""
    folder = tmp_path_factory.mktemp("runs") / "many"
    write_runs(folder, SEEDS, steps=STEPS, metrics=3)
    cut = folder / "sft-mini-mix-s2"
    (cut / "finished.json").unlink()
    (cut / "metrics.jsonl").write_text((cut / "metrics.jsonl").read_text()[:-1000])
    old = folder / "kd-mini-mix-s1"
    (old / "config.yaml").write_text((old / "config.yaml").read_text() + "\nforgotten_key: 1\n")
    again = folder / "again" / "grpo-mini-mix-s0"
    (again / "evals").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl"):
        (again / name).write_text((folder / "grpo-mini-mix-s0" / name).read_text())
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def file(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert document.write(root, out).startswith(f"{out}: 16 runs")
    return out


@pytest.fixture
def page(browser: Page, file: Path) -> Iterator[Page]:
    """The page as it opens. Whatever a test does, the console stays empty and nothing is asked of a network."""
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.complaints(), browser.requested()
    browser.open(file)
    yield browser
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith((file.as_uri(), "data:", "blob:"))] == []


def metrics(root: Path, algo: str, name: str, step: int) -> list[float]:
    """A metric of a method's runs at a step."""
    found = []
    for seed in range(SEEDS):
        rows = read_metrics(root / f"{algo}-mini-mix-s{seed}" / "metrics.jsonl")
        found += [row[name] for row in rows if row["step"] == step and name in row]
    return found


def answers(root: Path, algo: str) -> list[dict[str, Any]]:
    """All evaluation records of a method's runs."""
    files = [root / f"{algo}-mini-mix-s{seed}" / "evals" / "heldout.jsonl" for seed in range(SEEDS)]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def shown_numbers(page: Page) -> list[list[str]]:
    """The results table without intervals, row by row."""
    rows = "[...document.querySelectorAll('#table tbody tr')]"
    return page.run(f"return {rows}.map((row) => [...row.cells].map((cell) => cell.firstChild.textContent))")


def test_curves_are_means_with_t_intervals_over_what_was_spent(page: Page, root: Path) -> None:
    page.choose("metric", "loss/total")
    page.choose("axis", "flops")
    dgrpo = next(trace for trace in page.traces() if trace["name"] == "dgrpo")
    assert len(dgrpo["x"]) == STEPS and dgrpo["x"][-1] == pytest.approx(STEPS * 5e9)
    values = metrics(root, "dgrpo", "loss/total", 7)
    half = student.ppf(0.975, SEEDS - 1) * statistics.stdev(values) / SEEDS**0.5
    assert dgrpo["y"][6] == pytest.approx(statistics.mean(values), rel=1e-4)
    assert float(dgrpo["text"][6].split(",")[0].removeprefix("± ")) == pytest.approx(half, rel=0.01)
    page.choose("axis", "wall_seconds")
    seconds = metrics(root, "dgrpo", "progress/wall_seconds", STEPS)
    assert page.traces()[-1]["x"][-1] == pytest.approx(statistics.mean(seconds), rel=1e-4)
    page.choose("axis", "trained_tokens")
    assert page.traces()[-1]["x"][-1] == STEPS * 300
    page.choose("metric", "eval/heldout/mean")  # recorded in rows without costs
    assert page.traces()[-1]["x"] == [0, 20 * 300, 40 * 300]


def test_single_runs_intervals_and_smoothing(page: Page) -> None:
    page.choose("metric", "policy/made_up_00")
    page.choose("axis", "step")
    means = page.traces()
    assert [trace["name"] for trace in means] == list(METHODS)
    page.click("#single")
    assert [trace["name"] for trace in page.traces()].count("grpo-mini-mix-s1") == 1
    assert len(page.traces()) == len(METHODS) + 5 * SEEDS + 1  # the repeated run is drawn, too
    bands = "return document.getElementById('chart').data.filter((t) => t.fill === 'toself').length"
    assert page.run(bands) == len(METHODS)
    page.click("#bands")
    assert page.run(bands) == 0
    page.click("#single")
    page.choose("smoothing", "5")
    expected = statistics.mean(means[-1]["y"][8:13])
    assert page.traces()[-1]["y"][10] == pytest.approx(expected)
    assert page.texts("#last tbody th") == list(METHODS)


def test_no_button_sends_the_chart_anywhere(page: Page) -> None:
    titles = page.run("return [...document.querySelectorAll('.modebar-btn')].map((e) => e.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    policy = page.element("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert "default-src 'none'" in policy and "connect-src" not in policy


def test_methods_are_toggled_everywhere(page: Page) -> None:
    page.click("[data-arm='2']")
    left = [name for name in METHODS if name != "grpo"]
    assert page.texts("#table tbody th") == ["before training", *left]
    assert [trace["name"] for trace in page.traces()] == left
    assert page.texts("#heat h3") == ["before training", *left]
    assert [text.split("score")[0] for text in page.texts("#answer-cards h3")] == left
    assert page.texts("#rollout-cards .card > h3") == ["opd"] * SEEDS + ["dgrpo"] * SEEDS
    assert not any(text == "grpo-mini-mix-s0" for text in page.texts("#run-list tbody th"))
    page.click("#none")
    assert page.traces() == [] and page.texts("#answer-cards .card") == []
    page.click("#all")
    assert [trace["name"] for trace in page.traces()] == list(METHODS)


def test_the_table_is_the_studys_and_is_sorted(page: Page, root: Path) -> None:
    page.choose("columns", "1")
    heads = page.texts("#table thead th")
    column = heads.index("heldout multihop 256")
    rows = shown_numbers(page)
    cell = ("multihop", 256, STEPS)
    scores = [one["score"] for one in answers(root, "opd") if (one["task"], one["length"], one["step"]) == cell]
    opd = next(row for row in rows if row[0] == "opd")
    assert opd[column] == f"{100 * statistics.mean(scores):.1f}"
    button = f"#table thead th:nth-child({column + 1}) button"
    page.click(button)
    assert page.element(f"#table thead th:nth-child({column + 1})").get_attribute("aria-sort") == "descending"
    values = [float(row[column]) for row in shown_numbers(page)]
    assert values == sorted(values, reverse=True) and len(values) == len(METHODS) + 1
    page.click(button)
    assert page.element(f"#table thead th:nth-child({column + 1})").get_attribute("aria-sort") == "ascending"
    page.choose("values", "gain")
    assert page.texts("#table tbody th")[0] != "before training"
    assert page.texts("#table thead th")[-2] == "FLOPs"


def test_maps_of_length_and_depth(page: Page, root: Path) -> None:
    page.choose("map-task", "1")
    assert page.texts("#heat .card:first-child tbody th") == ["256", "512", "1024"]
    place = ("longform", 512, STEPS)
    kept = [
        one["score"]
        for one in answers(root, "dgrpo")
        if (one["task"], one["length"], one["step"]) == place and 0.2 <= one["depth"] < 0.4
    ]
    cell = "#heat .card:last-child tbody tr:nth-child(2) td:nth-child(3)"
    assert page.texts(cell) == [f"{100 * statistics.mean(kept):.1f}{len(kept)}"]
    page.choose("map-values", "gain")
    assert page.texts("#heat h3") == list(METHODS) and page.texts(cell)[0][0] in "+\u2212"


def test_answers_to_the_same_item_side_by_side(page: Page) -> None:
    page.choose("cell", "4")
    assert page.choices("item")[0] == "longform-test-000000-L512" and len(page.choices("item")) == 6
    page.click("#item-on")
    assert "Who is the mentor of longform 1?" in page.texts("#item-text")[0]
    cards = page.texts("#answer-cards .card")
    assert len(cards) == len(METHODS)
    assert all("is </script> & <b>KesDal</b>." in card and "seed 0" in card for card in cards)
    page.click("#before")
    assert page.texts("#answer-cards h3")[0].startswith("before training")
    page.choose("seed", "")
    assert len(page.texts("#answer-cards .card")) == 1 + len(METHODS) * SEEDS
    page.click("#item-back")
    page.click("#item-back")
    assert page.run("return document.getElementById('item').selectedIndex") == 5
    assert "truncated" not in page.texts("#answer-cards")[0]
    page.click("#item-back")
    assert "truncated at the token limit" in page.texts("#answer-cards")[0]


def test_rollouts_with_their_gap_to_the_teacher(page: Page) -> None:
    cards = page.texts("#rollout-cards .card > h3")
    assert cards == ["grpo"] * SEEDS + ["opd"] * SEEDS + ["dgrpo"] * SEEDS
    far = "#rollout-cards .card:last-child .completion:nth-of-type(2) .token.far"
    assert page.texts(far) == [" is", " Kes"]
    assert page.element(far).get_attribute("title") == '" is": \u22121.5 nats'
    assert 'largest gaps: " Kes" +6.25' in page.texts("#rollout-cards .card:last-child .facts")[1]
    read = page.texts("#rollout-cards .card:last-child details")
    assert read == ["the teacher reads (evidence)\u2026 TorVin's mentor is KesDal."]
    assert len(page.texts("#rollout-cards details")) == 2 * SEEDS  # grpo has no teacher
    page.click("#gap")
    assert page.texts("#rollout-cards .token") == []
    assert page.texts("#rollout-cards .card:last-child pre")[0] == "the mentor of TorVin is KesDal.<|im_end|>"
    page.click("#prompt-on")
    assert page.run("return document.getElementById('prompt').selectedIndex") == 1
    page.click("#prompt-back")
    assert page.run("return document.getElementById('prompt').selectedIndex") == 0
    page.choose("rollout-step", "0")
    assert page.choices("rollout-step") == ["1", str(STEPS)] and page.choices("prompt") == ["multihop-train-1-L256"]
    assert len(page.texts("#rollout-cards .card:last-child .completion")) == 4


def test_configurations_against_each_other(page: Page) -> None:
    names = page.choices("left")
    page.choose("left", str(names.index("opd-mini-mix-s0")))
    page.choose("right", str(names.index("dgrpo-mini-mix-s1")))
    rows = page.texts("#diff tbody tr")
    assert "algo.weights.pg0.01.0" in rows and "seed01" in rows and len(rows) < 8
    page.click("#same")
    assert len(page.texts("#diff tbody tr")) > 80
    assert page.texts("#config-note")[0].startswith(f"{len(rows)} of ")


def test_problems_are_marked(page: Page) -> None:
    page.click("#only-problems")
    listed = dict(zip(page.texts("#run-list tbody th"), page.texts("#run-list tbody td:last-child"), strict=True))
    assert listed.keys() == {"sft-mini-mix-s2", "kd-mini-mix-s1", "again/grpo-mini-mix-s0"}
    assert "metrics.jsonl ends in the middle of a line" in listed["sft-mini-mix-s2"]
    assert "config.yaml was written by another version (unknown key forgotten_key" in listed["kd-mini-mix-s1"]
    repeated = "grpo-mini-mix-s0, which counts in its place: move one of them elsewhere"
    assert repeated in listed["again/grpo-mini-mix-s0"]
    page.choose("metric", "loss/total")
    sft = next(trace for trace in page.traces() if trace["name"] == "sft")
    assert "3 runs" in sft["text"][0] and "2 runs" in sft["text"][-1]


def test_light_dark_and_as_the_system(page: Page) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    assert page.becomes(background, "rgb(255, 255, 255)"), page.run(background)
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert page.becomes(background, "rgb(20, 23, 26)"), page.run(background)
    colour = "return document.getElementById('chart').layout.font.color"
    assert page.becomes(colour, "#eceff2"), page.run(colour)
    page.choose("theme", "light")
    assert page.becomes(background, "rgb(255, 255, 255)") and page.becomes(colour, "#16191d"), page.run(colour)


def test_everything_is_reached_and_worked_by_keyboard(page: Page) -> None:
    page.run("document.getElementById('none').click()")  # fewer cards to pass on the way; the focus stays at the top
    page.run("document.activeElement.blur()")
    controls = page.run(
        "return [...document.querySelectorAll('main select, main button, main input, header select')]"
        ".filter((e) => !e.closest('#chart')).map((e) => e.id || e.dataset.arm || `sort ${e.dataset.column}`)"
    )
    page.run(
        "window.reached = []; document.addEventListener('focusin', ({target: e}) => window.reached.push("
        "{name: e.id || e.dataset.arm || `sort ${e.dataset.column}`, outline: getComputedStyle(e).outlineStyle,"
        "label: e.textContent || e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.title}))"
    )
    page.element("body").send_keys(Keys.TAB * 200)
    reached: list[dict[str, Any]] = page.run("return window.reached")
    assert all(seen["outline"] != "none" and seen["label"] for seen in reached), reached
    assert set(controls) <= {seen["name"] for seen in reached} and len(controls) > 30
    page.element("#all").send_keys(Keys.ENTER)
    page.element("[data-arm='0']").send_keys(Keys.SPACE)
    assert page.texts("#table tbody th") == ["before training", *METHODS[1:]]
    page.element("#table [data-column='0']").send_keys(Keys.ENTER)
    assert page.element("#table th[aria-sort='descending'] button") == page.driver.switch_to.active_element
    page.element("#axis").send_keys(Keys.ARROW_DOWN)
    assert page.run("return document.getElementById('axis').value") == "trained_tokens"
    assert page.traces()[-1]["x"][-1] == STEPS * 300


def test_a_phone_shows_it_without_scrolling_sideways(page: Page) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    page.driver.refresh()
    assert page.becomes("return innerWidth", 360)
    assert page.run("return document.documentElement.scrollWidth") <= 360
    assert page.run("return document.getElementById('chart').getBoundingClientRect().width") > 300
    small = page.run(
        "return [...document.querySelectorAll('main select, main button, main input, p, td')]"
        ".filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11).map((e) => e.outerHTML)"
    )
    assert small == []


@pytest.mark.slow
def test_200_runs_open_in_3_seconds(browser: Page, tmp_path: Path) -> None:
    """From the start of loading to the frame that shows the first chart; best of three."""
    write_runs(tmp_path / "runs", 40, steps=60, items=4, metrics=12)
    document.write(tmp_path / "runs", tmp_path / "report.html")
    seconds = []
    for _ in range(3):
        browser.open(tmp_path / "report.html")
        seconds.append(browser.drawn_after())
    assert len(browser.texts("#run-list tbody tr")) == 200
    assert min(seconds) < 3.0, seconds
