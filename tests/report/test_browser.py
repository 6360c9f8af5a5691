"""The page in a browser: opened from disk, clicked, typed at, looked at."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.report.build import build_report
from common.report.page import page as as_html
from common.report.viewer import read_viewer
from tests.report.conftest import CELLS, write_cells, write_slides

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Without a GPU the browser draws WebGL on the CPU.
FLAGS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"]


def lacking(what: str) -> None:
    """Skip, or fail where a browser is required."""
    if os.environ.get("WEAKSEG_BROWSER") == "required":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def report(run_dir) -> dict[str, Any]:
    return build_report(run_dir, max_embedded=2)


@pytest.fixture(scope="module")
def address(report, tmp_path_factory) -> str:
    if read_viewer() is None:
        lacking("no NiiVue: run `python common/report/viewer.py`, which needs npm")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(as_html(report), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        lacking(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, address) -> Iterator[tuple[Any, list[str]]]:
    """The page, and whatever it should not do: errors, and requests to anything but itself."""
    page = browser.new_page(viewport={"width": 920, "height": 560})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(r.url))
    page.goto(address)
    yield page, wrong
    page.close()


@pytest.fixture
def page(opened) -> Iterator[Any]:
    """The page with its list; what a test does must leave no error."""
    page, wrong = opened
    page.keyboard.press("Escape")
    page.locator("#order").select_option("")
    page.locator("#search").fill("")
    yield page
    assert wrong == []
    wrong.clear()


def open_case(page: Any, case: str) -> Any:
    page.locator(f"tr[data-case='{case}'] .open").click()
    page.wait_for_selector(f"#canvas[data-ready='{case}']")
    return page.locator("#canvas")


def pixels(canvas: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def listed(page: Any) -> list[str]:
    return page.locator("tr[data-case]").evaluate_all("rows => rows.map(row => row.dataset.case)")


def hot(image: np.ndarray) -> int:
    """Pixels in the colors of heat: red well above blue."""
    return int((image[..., 0] - image[..., 2] > 60).sum())


def test_the_first_screen_has_the_number_its_interval_and_the_strongest_baseline(page, report):
    text = page.locator("#result").inner_text()
    head = report["headline"]
    assert f"{head['value']:.2f}" in text
    assert f"95 %: {head['low']:.2f} to {head['high']:.2f}" in text
    assert f"{head['rival']['value']:.2f}" in text
    assert head["rival"]["name"] in text
    assert page.locator("#result").bounding_box()["y"] < 250
    assert (
        "chosen" in page.locator("#supervision").inner_text()
        or "not recorded" in page.locator("#supervision").inner_text()
    )


def test_cases_are_listed_worst_first_and_sort_by_a_click_on_a_head(page, report):
    worst = [row["case"] for row in report["cases"]]
    assert listed(page) == worst
    head = page.locator("th[data-key='suspicion']")
    head.locator("button").click()
    assert listed(page) == sorted(worst)  # probabilities fall from p1 to p4
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert listed(page) == sorted(worst, reverse=True)
    page.locator("#order").select_option("dice 1")
    assert listed(page) == worst[::-1]


def test_the_search_finds_a_case_by_its_name(page):
    page.locator("#search").fill("P3")
    assert listed(page) == ["p3"]
    assert "1 of 4 cases" in page.locator("#cases").inner_text()


def test_volumes_are_shown_and_the_slider_tells_pythons_figures(page, report):
    row = report["cases"][0]
    canvas = open_case(page, row["case"])
    image = pixels(canvas)
    assert (image.max(axis=2) > 60).mean() > 0.05  # not blank
    page.locator("#view").select_option("axial")  # quicker to draw
    table, seen = row["table"], []
    for stop in (0, report["stop"], 200, 254):
        page.locator("#stop").fill(str(stop))
        assert page.locator("#live-components").inner_text() == str(table["components"][stop])
        assert page.locator("#live-ml").inner_text() == f"{table['ml'][stop]:.3f} ml"
        assert page.locator("#live-dice").inner_text() == f"{table['dice'][stop]:.4f}"
        assert page.locator("#at").inner_text().startswith(f"{report['stops'][stop]:.4f}")
        seen.append(hot(pixels(canvas)))
    assert seen[0] > seen[1] > seen[2] > seen[3]
    assert "the run’s own" not in page.locator("#at").inner_text()


def test_keys_step_through_slices_thresholds_and_cases(page, report):
    first, second = (row["case"] for row in report["cases"][:2])
    canvas = open_case(page, first)
    before = pixels(canvas)
    page.keyboard.press("ArrowUp")
    above = pixels(canvas)
    page.keyboard.press("ArrowDown")
    assert (above != before).any(axis=2).mean() > 0.001
    assert (pixels(canvas) != before).any(axis=2).mean() < 0.001
    page.keyboard.press("+")
    assert page.locator("#stop").input_value() == str(report["stop"] + 1)
    page.keyboard.press("-")
    assert "the run’s own" in page.locator("#at").inner_text()
    page.keyboard.press("m")
    assert not page.locator("#show-mask").is_checked()
    page.keyboard.press("m")
    page.keyboard.press("n")
    page.wait_for_selector(f"#canvas[data-ready='{second}']")
    assert page.locator("#case-name").inner_text() == second
    page.keyboard.press("p")
    assert page.locator("#case-name").inner_text() == first
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.textContent") == first


def test_a_case_without_volumes_shows_its_picture(page, report):
    case = report["cases"][3]["case"]
    page.locator(f"tr[data-case='{case}'] .open").click()
    assert "shown as a picture" in page.locator("dialog").inner_text()
    assert page.locator(".montage img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 300


def test_pictures_and_curves_have_alternative_texts(page):
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("main svg").count() >= 5
    assert page.locator("main svg:not([aria-label])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_and_a_phone_scroll_in_one_direction(opened, scheme):
    page, wrong = opened
    page.keyboard.press("Escape")
    page.emulate_media(color_scheme=scheme)
    for width, height in ((1280, 800), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 382) == (scheme == "light")
    page.set_viewport_size({"width": 920, "height": 560})
    assert wrong == []


def test_without_webgl_the_picture_takes_the_place_of_the_volumes(browser, address, report):
    page = browser.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(f"{address}#{report['cases'][0]['case']}")
    assert "offers no WebGL2" in page.locator("dialog").inner_text()
    assert page.locator(".montage img").count() == 1
    page.close()


def test_nothing_lies_beside_the_page(address):
    assert [path.name for path in Path(address.removeprefix("file://")).parent.iterdir()] == ["report.html"]


def test_classes_have_a_table_of_what_they_were_called(browser, report, tmp_path):
    rows = [{"name": "low", "called": [0, 3, 0], "share": 1.0}, {"name": "high", "called": [0, 1, 1], "share": 0.5}]
    told = {"accuracy": 0.8, "slices": 5, "commonest": 0.6, "classes": ["none", "low", "high"], "rows": rows}
    (tmp_path / "report.html").write_text(as_html({**report, "classes": told}), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    cells = [row.locator("th, td").all_inner_texts() for row in page.locator("#classes tbody tr").all()]
    assert cells == [["low", "0", "3", "0", "100 %"], ["high", "0", "1", "1", "50 %"]]
    assert page.locator("#classes td.right").all_inner_texts() == ["3", "1"]


def test_a_training_is_looked_at_epoch_by_epoch(browser, report, tmp_path):
    shots = [{"epoch": epoch, "picture": row["picture"]} for epoch, row in zip((5, 10), report["cases"], strict=False)]
    training = {"epochs": [5, 10], "seconds": 20.0}
    training["curves"] = [{"name": "learning rate", "y": [1e-3, 2.5e-8]}, {"name": "auc", "y": [None, 0.9]}]
    training |= {"kept": {"epoch": 10, "why": "the last one"}}
    training |= {"montages": [{"case": "p1", "positive": True, "pictures": shots}]}
    run = {"kind": "training", "title": "Training", "seconds": 20.0, "failed": {}}
    told = {"kind": "training", "run": run, "training": training, "supervision": ["labels"], "provenance": []}
    (tmp_path / "report.html").write_text(as_html(told), encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    image = page.locator(".montage img")
    assert "p1, label: positive" in page.locator("#montages").inner_text()
    assert "At last 2.5e−8." in page.locator("#curves").inner_text()
    assert page.locator("#curves circle").count() == 1  # of the only validation
    assert image.get_attribute("alt").startswith("p1 after epoch 10:")
    last = image.get_attribute("src")
    page.locator("#epoch").press("ArrowLeft")
    assert page.locator("#epoch-shown").inner_text() == "epoch 5"
    assert image.get_attribute("alt").startswith("p1 after epoch 5:")
    assert image.get_attribute("src") != last
    assert image.evaluate("image => image.decode().then(() => image.clientWidth)") >= 700  # wide: it scrolls by itself
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert wrong == []
    page.close()


@pytest.fixture
def slide_page(browser, tmp_path) -> Iterator[Any]:
    """Opens a run of slides at one of them, whose cells have the labels; what a test does must leave no error."""
    page = browser.new_page(viewport={"width": 920, "height": 700})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))

    def at(case: str, labels: dict[str, float] | None = None) -> tuple[Any, list[dict[str, Any]]]:
        write_cells(write_slides(tmp_path), case, labels=labels)
        report = build_report(tmp_path)
        (tmp_path / "report.html").write_text(as_html(report), encoding="utf-8")
        page.goto((tmp_path / "report.html").as_uri())
        page.locator(f"tr[data-case='{case}'] .open").click()
        page.locator(f"canvas.heat[data-ready='{case}']").wait_for()
        return page, next(row["slide"]["labels"] for row in report["cases"] if row["case"] == case)

    yield at
    assert wrong == []
    page.close()


def drawn_cells(page: Any) -> int:
    """Cells of the heat that have a color."""
    read = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    return sum(alpha > 0 for alpha in page.locator("canvas.heat").evaluate(read)[3::4])


def test_the_heat_of_a_slide_moves_with_the_threshold_and_tells_pythons_figures(slide_page):
    page, (label,) = slide_page("s1")
    page.locator("#opacity").fill("1")
    page.locator("#show-mask").uncheck()
    page.locator("#show-truth").uncheck()
    tissue = CELLS["tissue"][:, :19].sum()
    assert "the run’s own" in page.locator("#at").inner_text()
    for stop in (label["stop"], 128, 250):
        page.locator("#stop").fill(str(stop))
        assert page.locator("#live-share").inner_text() == f"{100 * label['share'][stop]:.2f} %"
        assert page.locator("#live-mm2").inner_text() == f"{label['mm2'][stop]:.4f} mm²"
        assert page.locator("#live-dice").inner_text() == f"{label['dice'][stop]:.4f}"
        assert drawn_cells(page) / tissue == pytest.approx(label["share"][stop], abs=1e-4)
    page.keyboard.press("-")
    assert page.locator("#stop").input_value() == "249"
    view, heat = page.locator(".slide img").bounding_box(), page.locator("canvas.heat").bounding_box()
    assert heat["width"] / view["width"] == pytest.approx(20 / 19.2, abs=0.01)  # cells reach beyond the slide


def test_each_label_of_a_slide_has_its_own_heat_threshold_and_figures(slide_page):
    page, labels = slide_page("s1", {"low": 0.3, "high": 0.7, "none of it": np.inf})
    tissue = CELLS["tissue"][:, :19].sum()
    for number, label in enumerate(labels):
        page.locator("#label").select_option(str(number))
        page.locator(f"canvas.heat[aria-label^='Heat of {label['name']} '][data-ready='s1']").wait_for()
        page.locator("#show-mask").uncheck()
        assert page.locator("#show-truth, #live-dice").count() == 0  # the outlines are of any label
        assert ("The gate was closed" in page.locator(".panel .note").inner_text()) == (label["stop"] is None)
        for stop in {label["stop"], 128} - {None}:
            page.locator("#stop").fill(str(stop))
            assert page.locator("#live-share").inner_text() == f"{100 * label['share'][stop]:.2f} %"
            assert drawn_cells(page) / tissue == pytest.approx(label["share"][stop], abs=1e-4)
    assert len({tuple(label["share"]) for label in labels}) == 3
