"""The page itself, launched once and driven over HTTP as a browser would: nothing by name, no file of anyone's served."""

from __future__ import annotations

import html
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import words
from app.ui import build_page, launch
from foundation.errors import InvalidRequest
from serving.client import Client
from serving.fake import ADAPTER, DETECTOR, FUSER, SEGMENTER
from tests.app.conftest import Served
from tests.serving.live_api import nifti_volume, png_film


class Browser:
    """One session: uploads files and runs events by their number, reading what comes back."""

    def __init__(self, page: Any, http: httpx.Client) -> None:
        self.page, self.http, self.session = page, http, secrets.token_hex(5)

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        (path,) = self.http.post("/gradio_api/upload", files={"files": (name, data)}).raise_for_status().json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def number(self, name: str, place: int = 0) -> int:
        """Of the event whose function is called `name`; the place-th where several are."""
        return [number for number, fn in self.page.fns.items() if fn.name == name][place]

    def run(self, name: str, *inputs: Any, event: Any = None, place: int = 0) -> list[dict[str, Any]]:
        """The messages of the event whose function is called `name`, to its end."""
        return self.run_number(self.number(name, place), *inputs, event=event)

    def run_number(self, number: int, *inputs: Any, event: Any = None) -> list[dict[str, Any]]:
        body = {"data": inputs, "fn_index": number, "session_hash": self.session, "event_data": event}
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()
        messages = []
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    messages.append(json.loads(line[6:]))
                    if messages[-1]["msg"] == "process_completed":
                        break
        return messages


@pytest.fixture(scope="module")
def page(page_client: Client) -> Iterator[tuple[Any, str]]:
    built = build_page(page_client)
    try:
        yield built, launch(built, None, block=False)
    finally:
        built.close()


@pytest.fixture
def browser(page: tuple[Any, str], served: Served) -> Iterator[Browser]:
    with httpx.Client(base_url=page[1].rstrip("/"), trust_env=False, timeout=60) as http:
        yield Browser(page[0], http)


def output(messages: list[dict[str, Any]]) -> list[Any]:
    assert messages[-1]["success"], messages[-1]
    found: list[Any] = messages[-1]["output"]["data"]
    return found


def test_the_page_says_what_it_is_for_and_fetches_nothing_from_outside(browser: Browser) -> None:
    shown = browser.http.get("/").raise_for_status().text
    config = browser.http.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert words.RESEARCH_USE in json.dumps(config["components"])
    for address in ("fonts.googleapis", "fonts.gstatic", "cdnjs", "jsdelivr", "unpkg"):
        assert address not in shown


def test_no_event_can_be_called_by_name(browser: Browser) -> None:
    for name in {fn.name for fn in browser.page.fns.values()}:
        for route in (f"call/{name}", f"call/v2/{name}", f"run/{name}", f"api/{name}"):
            assert browser.http.post(f"/gradio_api/{route}", json={"data": []}).status_code == 403


CLOSED = (
    "info", "openapi.json", "proxy=http://127.0.0.1/", "run-history/records", "vibe-code", "deep_link", "dev/reload", "token",
    "user", "profiling/traces", "stream/a/b/c/playlist.m3u8", "custom_component/a/b/c/d", "file=relative", "file/etc/hosts",
)  # fmt: skip


@pytest.mark.parametrize("route", [*(f"/gradio_api/{name}" for name in CLOSED), "/monitoring", "/logout", "/docs"])
def test_what_the_page_does_not_need_is_closed(browser: Browser, route: str) -> None:
    assert browser.http.get(route).status_code == 403
    assert browser.http.post(route).status_code == 403


def test_a_foreign_name_for_this_machine_is_refused(browser: Browser) -> None:
    for host, status in (("127.0.0.1:7860", 200), ("localhost", 200), ("rebound.example", 403)):
        assert browser.http.get("/config", headers={"Host": host}).status_code == status


def test_an_address_is_never_fetched_as_a_film(browser: Browser) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        for scheme in ("http", "HTTP", "ftp"):
            address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/film.png"
            named = {"path": address, "url": address, "orig_name": "x", "meta": {"_type": "gradio.FileData"}}
            body = {"data": [named], "fn_index": browser.number("take"), "session_hash": browser.session}
            assert browser.http.post("/gradio_api/queue/join", json=body).status_code == 403
        assert browser.http.get(f"/gradio_api/file={address}").status_code == 403
        with pytest.raises(TimeoutError):
            listener.accept()


def test_scripts_and_pictures_come_from_the_page_alone(browser: Browser) -> None:
    headers = browser.http.get("/").headers
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"


def test_a_dropped_film_is_shown_and_not_left_on_disk(browser: Browser) -> None:
    dropped = browser.upload("film.png", png_film())
    assert Path(dropped["path"]).is_file()
    found = output(browser.run("take", dropped))
    figure = next(one for one in found if isinstance(one, dict) and "<figure" in str(one.get("value")))
    assert figure["visible"] is True
    assert "film.png" in figure["value"]
    assert not Path(dropped["path"]).exists()


def test_a_file_of_this_machine_cannot_be_named_as_a_film(browser: Browser) -> None:
    secret = str(Path(__file__).resolve())
    named = {"path": secret, "orig_name": "x", "meta": {"_type": "gradio.FileData"}}
    assert browser.run("take", named)[-1]["success"] is False
    assert Path(secret).is_file()
    assert browser.http.get(f"/gradio_api/file={secret}").status_code in (403, 404)


def test_a_bad_file_is_a_sentence_and_the_film_stays(browser: Browser) -> None:
    output(browser.run("take", browser.upload("film.png", png_film())))
    found = output(browser.run("take", browser.upload("bad.dcm", b"not a film")))
    said = [one["value"] for one in found if isinstance(one, dict) and one.get("value")]
    assert len(said) == 1
    assert "known film format" in said[0]
    answer = json.dumps(output(browser.run("ask", None, None, "Is there an effusion?", None)))
    assert words.NO_FILM not in answer  # the film dropped first is still the film


def test_an_answer_streams_to_the_page_with_its_evidence(browser: Browser, served: Served) -> None:
    output(browser.run("take", browser.upload("film.png", png_film())))
    messages = browser.run("ask", None, None, "Is there an effusion?", None)
    growing = [one for one in messages if one["msg"] == "process_generating"]
    assert len(growing) > 3
    assert 'class=\\"bars\\"' in json.dumps(messages)
    assert served.gateway.requests[-1].options == {"maps": True, "map_method": "dense"}


def test_one_click_on_an_example_opens_it(browser: Browser) -> None:
    found = output(browser.run("choose", event={"index": 0, "value": None}))
    assert any("large right effusion" in str(one) for one in found)


def test_a_volume_has_a_slider_and_each_slice_its_picture(browser: Browser) -> None:
    found = output(browser.run("take", browser.upload("volume.nii", nifti_volume(12))))
    slider = next(one for one in found if isinstance(one, dict) and one.get("maximum") == 12)
    assert (slider["value"], slider["visible"]) == (7, True)
    pictures = [json.dumps(output(browser.run("turn", None, number, None))) for number in (1, 12)]
    assert "slice 1 of 12" in pictures[0]
    assert "slice 12 of 12" in pictures[1]


def test_sessions_do_not_see_each_others_films(page: tuple[Any, str], browser: Browser) -> None:
    output(browser.run("take", browser.upload("film.png", png_film())))
    other = Browser(page[0], browser.http)
    assert words.NO_FILM in json.dumps(other.run("ask", None, None, "Is there an effusion?", None))


@pytest.mark.parametrize(("panel", "name"), enumerate((ADAPTER, SEGMENTER, DETECTOR, FUSER)))
def test_the_served_adapters_are_offered_with_their_limits(browser: Browser, served: Served, panel: int, name: str) -> None:
    shown = json.dumps(output(browser.run("offer", place=panel)))
    assert name in shown
    assert json.dumps(html.escape(served.client.model(name).vesalius.limits[0]))[1:-1] in shown


def test_a_task_without_an_adapter_says_so(browser: Browser, served: Served) -> None:
    served.gateway.unloaded.add(SEGMENTER)
    found = output(browser.run("offer", place=1))
    assert "<code>vesalius finetune segmentation</code>" in found[0]
    assert found[-1]["visible"] is False


def test_a_click_on_the_film_is_a_mark_and_the_outlines_follow_it(browser: Browser, served: Served) -> None:
    output(browser.run("take", browser.upload("film.png", png_film())))
    browser.run("offer", place=1)
    marked = output(browser.run("mark", None, None, None, "inside", event={"x": 0.25, "y": 0.75}))
    assert any('class="mark inside" style="left:25.00%;top:75.00%"' in str(one) for one in marked)
    found = output(browser.run("outline_marked", None, SEGMENTER, [], "lungs", None, None))
    assert served.gateway.requests[-1].options["points"] == [[36.0, 12.0, True]]
    assert any(words.REGIONS_CARD in str(one) for one in found)
    other = output(browser.run("mark", None, None, None, "inside", event={"x": 7, "y": 0.5}))
    assert words.OUTSIDE_FILM in str(other)
    again = output(browser.run("outline_marked", None, SEGMENTER, [], "lungs", None, None))
    assert not any("value" in one for one in again if isinstance(one, dict))  # that sentence stays


def test_the_form_is_made_from_what_the_adapter_reads(browser: Browser) -> None:
    output(browser.run("take", browser.upload("film.png", png_film())))
    browser.run("offer", place=3)
    form = browser.run("apply", FUSER)[-1]["output"]["render_config"]
    labels = [one["props"].get("label") for one in form["components"]]
    for label in ("C-reactive protein (mg/L)", "lactate dehydrogenase (U/L)", "sex", words.NOTE, words.WITH_FILM):
        assert label in labels
    (asking,) = form["dependencies"]
    assert asking["api_visibility"] == "private"
    found = output(browser.run_number(asking["id"], None, True, "", "120", "<1", "F"))
    assert "film alone" in found[0]


def test_a_taken_port_is_a_sentence(page_client: Client) -> None:
    built = build_page(page_client)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InvalidRequest, match="taken"):
        launch(built, taken.getsockname()[1], block=False)
