"""The page in a real browser: what a stranger, a clinician with a volume, and someone with a broken file get to see."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import words
from app.ui import build_page, launch
from serving.client import Client
from tests.app.conftest import Served
from tests.serving.live_api import color_picture, nifti_volume, png_film, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def address(page_client: Client) -> Iterator[str]:
    page = build_page(page_client)
    try:
        yield launch(page, None, block=False)
    finally:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it is in the extra ui-test")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed, so the page was not tried in a browser")
    with playwright.sync_playwright() as running:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = running.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, address: str, served: Served) -> Iterator[Callable[..., Any]]:
    """Opens the page in a window of its own; at the end nothing outside this machine was asked for, and no script failed."""
    windows, foreign, failures = [], [], []

    def opened(width: int = 1280, height: int = 800) -> Any:
        window = chromium.new_page(viewport={"width": width, "height": height})
        window.set_default_timeout(PATIENCE_MS)
        window.on("request", lambda one: None if one.url.startswith((address, "data:", "blob:")) else foreign.append(one.url))
        window.on("pageerror", lambda one: failures.append(str(one)))
        window.goto(address)
        window.wait_for_selector("#gallery img")
        windows.append(window)
        return window

    yield opened
    for window in windows:
        window.close()
    assert foreign == []
    assert failures == []


def choose(window: Any, example: str = "Effusion") -> None:
    window.get_by_role("img", name=example, exact=True).click()
    window.wait_for_selector("#evidence .bars")
    window.wait_for_selector(f"#chat >> text={words.SUGGESTED[0]}")


def drop(window: Any, folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    window.set_input_files("#film-drop input[type=file]", folder / name)


def test_one_click_on_an_example_gets_an_answer_with_its_evidence(visit: Callable[..., Any]) -> None:
    window = visit()
    choose(window)
    assert "drawn with large right effusion" in window.inner_text("#film")
    assert "effusion" in window.inner_text("#evidence")
    assert words.DEPENDENT in window.inner_text("#evidence")
    assert window.is_visible(f"text={words.RESEARCH_USE}")


def test_a_map_is_laid_over_the_film_for_the_finding_chosen(visit: Callable[..., Any]) -> None:
    window = visit()
    choose(window)
    window.click("#map input")
    window.get_by_role("option").nth(2).click()
    label = window.input_value("#map input").rpartition(" (")[0]
    window.wait_for_selector(f'#film img[alt="{words.MAP_PICTURE.format(label=label)}"]')
    window.click("#map input")
    window.get_by_role("option", name=words.NO_MAP, exact=True).click()
    window.wait_for_function("document.querySelectorAll('#film img').length === 1")


def test_a_second_question_goes_on_with_the_conversation(visit: Callable[..., Any], served: Served) -> None:
    window = visit()
    choose(window)
    window.fill("#question textarea", "Where is it?")
    window.keyboard.press("Enter")
    window.wait_for_function("document.querySelector('#question textarea').value === ''")
    assert window.is_visible("#chat >> text=Where is it?")
    assert [turn.role for turn in served.gateway.requests[-1].turns] == ["user", "assistant", "user"]


def test_stop_withdraws_the_question_and_keeps_it(visit: Callable[..., Any], served: Served) -> None:
    window = visit()
    choose(window)
    served.gateway.delay_s = 1.0
    window.fill("#question textarea", "Where is it?")
    window.keyboard.press("Enter")
    window.wait_for_selector("#chat >> text=Where is it?")
    window.click("#stop")
    window.wait_for_selector(f"text={words.STOPPED}")
    wait_until(lambda: len(served.gateway.cancelled) == 1, seconds=20)
    assert window.input_value("#question textarea") == "Where is it?"
    window.wait_for_selector("#chat >> text=Where is it?", state="hidden", timeout=10_000)


def test_a_volume_is_leafed_through(visit: Callable[..., Any], tmp_path: Path) -> None:
    window = visit()
    drop(window, tmp_path, "volume.nii", nifti_volume(12))
    window.wait_for_selector("#film >> text=slice 7 of 12")
    window.fill("#slice input[type=number]", "3")
    window.keyboard.press("Tab")
    window.wait_for_selector("#film >> text=slice 3 of 12")


def test_a_film_of_another_kind_gets_no_numbers(visit: Callable[..., Any], tmp_path: Path) -> None:
    window = visit()
    drop(window, tmp_path, "photo.png", color_picture())
    window.wait_for_selector("#film >> text=photo.png")
    window.get_by_role("button", name=words.SUGGESTED[1]).click()
    window.wait_for_selector("#evidence >> text=Not assessed: this looks like a photograph.")
    assert window.query_selector("#evidence .bars") is None


def test_an_error_loses_neither_film_nor_question(visit: Callable[..., Any], tmp_path: Path, served: Served) -> None:
    window = visit()
    drop(window, tmp_path, "film.png", png_film())
    window.wait_for_selector("#film >> text=film.png")
    served.gateway.error = ("overloaded", "The server is busy. Try again in 3 seconds.")
    window.fill("#question textarea", "Is there an effusion?")
    window.keyboard.press("Enter")
    window.wait_for_selector("text=The server is busy. Try again in 3 seconds.")
    assert window.input_value("#question textarea") == "Is there an effusion?"
    drop(window, tmp_path, "bad.dcm", b"not a film")
    window.wait_for_selector("text=The file's content is of no known film format")
    assert "film.png" in window.inner_text("#film")


def test_labels_and_findings_of_the_film_on_the_page(visit: Callable[..., Any]) -> None:
    window = visit()
    choose(window)
    window.get_by_role("tab", name=words.LABELS_TAB).click()
    window.click("#score")
    window.wait_for_selector("#scores .bars")
    window.get_by_role("tab", name=words.FINDINGS_TAB).click()
    window.click("#predict")
    window.wait_for_selector("#predicted .bars")


def open_tab(window: Any, name: str) -> None:
    """By its name, or from the menu that holds what a narrow window has no room for."""
    shown = window.get_by_role("tab", name=name, exact=True)
    if shown.count() and shown.first.is_visible():
        shown.first.click()
    else:
        window.get_by_label("More tabs").click()
        window.locator(".overflow-dropdown button", has_text=name).click()


def click_film(window: Any, x: float, y: float) -> None:
    frame = window.locator("#regions-film .frame")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    frame.click(position={"x": x * box["width"], "y": y * box["height"]})


def test_a_click_on_the_film_outlines_what_is_meant_and_its_mask_is_saved(
    visit: Callable[..., Any], tmp_path: Path, served: Served
) -> None:
    window = visit()
    drop(window, tmp_path, "film.png", png_film())
    window.wait_for_selector("#film >> text=film.png")
    open_tab(window, words.REGIONS_TAB)
    window.wait_for_selector("#regions-film .frame img")
    click_film(window, 0.25, 0.75)
    window.wait_for_selector("#regions .regions")
    ((row, column, is_inside),) = served.gateway.requests[-1].options["points"]
    assert (row, column, is_inside) == (pytest.approx(36, abs=0.5), pytest.approx(12, abs=0.5), True)
    window.wait_for_function("document.querySelectorAll('#regions-film img').length > 1")
    with window.expect_download() as saved:
        window.locator("#regions a[download]").first.click()
    assert saved.value.suggested_filename.startswith("film-")
    with window.expect_download() as saved:
        window.get_by_role("button", name=words.SAVE_NIFTI).click()
    assert saved.value.suggested_filename == "film-lungs.nii"
    window.get_by_label(words.MARKS["box"]).check()
    click_film(window, 0.1, 0.1)
    window.wait_for_selector(f"#regions-film >> text={words.SECOND_CORNER}")
    click_film(window, 0.9, 0.6)
    window.wait_for_selector("#regions-film .mark.box")
    wait_until(lambda: len(served.gateway.requests[-1].options.get("boxes", ())) == 1, seconds=20)
    window.click("#clear-marks")
    window.wait_for_function("document.querySelectorAll('#regions-film .mark').length === 0")


def test_anomaly_and_course_of_the_film_on_the_page(visit: Callable[..., Any], tmp_path: Path, served: Served) -> None:
    window = visit()
    drop(window, tmp_path, "film.png", png_film())
    window.wait_for_selector("#film >> text=film.png")
    open_tab(window, words.ANOMALY_TAB)
    window.click("#compare")
    window.wait_for_selector("#strangeness .bars")
    window.wait_for_function("document.querySelectorAll('#strange-film img').length === 2")
    open_tab(window, words.COURSE_TAB)
    window.get_by_label("C-reactive protein (mg/L)").fill("12,5")
    window.click("#estimate")
    window.wait_for_selector("text=C-reactive protein is '12,5'.")
    window.get_by_label("C-reactive protein (mg/L)").fill("< 5")
    window.click("#estimate")
    window.wait_for_selector("#course .bars")
    assert served.gateway.requests[-1].options == {"tabular": {"crp": "-inf"}, "contributions": False}


@pytest.mark.parametrize("width", [390, 1280])
def test_no_panel_is_wider_than_the_window(visit: Callable[..., Any], tmp_path: Path, width: int) -> None:
    window = visit(width, 800)
    drop(window, tmp_path, "film.png", png_film())
    window.wait_for_selector("#film >> text=film.png")
    for tab in (words.FINDINGS_TAB, words.REGIONS_TAB, words.ANOMALY_TAB, words.COURSE_TAB, words.LABELS_TAB):
        open_tab(window, tab)
        window.wait_for_timeout(300)
        assert window.evaluate("document.documentElement.scrollWidth") <= width, tab


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(visit: Callable[..., Any], width: int) -> None:
    window = visit(width, 800)
    choose(window)
    assert window.evaluate("document.documentElement.scrollWidth") <= width


def test_a_question_is_text_and_nothing_else(visit: Callable[..., Any], tmp_path: Path) -> None:
    window = visit()
    drop(window, tmp_path, "film.png", png_film())
    window.wait_for_selector("#film >> text=film.png")
    window.fill("#question textarea", '<img src=x onerror="document.title=1"> **bold** [a](http://x.example)')
    window.keyboard.press("Enter")
    window.wait_for_selector("#evidence .bars")
    assert '<img src=x onerror="document.title=1"> **bold**' in window.inner_text("#chat")
    assert window.query_selector("#chat a, #chat strong, #chat img[src=x]") is None
    assert window.title() == words.TITLE
