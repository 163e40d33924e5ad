"""Regions, anomaly and course over a live API: what the server says is what the cards say."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from app import words
from app.film import OpenFilm
from app.marks import Marks
from app.panels.anomaly import AnomalyPanel, strangeness_card
from app.panels.course import CoursePanel
from app.panels.film import FilmDesk
from app.panels.regions import RegionsPanel, first_classes
from app.region_card import file_name, region_card
from app.shelf import Shelf, about_html
from foundation.errors import InvalidRequest, Overloaded, VesaliusError
from serving.client import Client
from serving.fake import ADAPTER, DETECTOR, FUSER, SEGMENTER
from serving.fake_tasks import LUNGS
from serving.schemas.anomaly import AnomalyItem
from serving.schemas.models import Model
from tests.app.conftest import Served
from tests.serving.live_api import color_picture, dicom_ct_slice, png_film

FILM = OpenFilm.read(png_film(3), "film.png")
PHOTO = OpenFilm.read(color_picture(), "photo.png")


def regions_of(served: Served) -> RegionsPanel:
    return RegionsPanel(served.client, FilmDesk(served.client))


def anomaly_of(served: Served) -> AnomalyPanel:
    return AnomalyPanel(served.client, FilmDesk(served.client))


def course(served: Served) -> Model:
    return served.client.model(FUSER)


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "name"), [("classify", ADAPTER), ("segment", SEGMENTER), ("anomaly", DETECTOR), ("fuse", FUSER)]
)
def test_each_panel_offers_the_adapters_of_its_task(served: Served, capability: str, name: str) -> None:
    (model,) = Shelf(served.client, capability, "a task").offered()
    assert model.id == name
    about = about_html(model)
    for sentence in model.vesalius.limits:
        assert sentence.replace("'", "&#x27;") in about


def test_an_adapter_that_is_gone_is_no_longer_offered(served: Served) -> None:
    served.gateway.unloaded.add(DETECTOR)
    shelf = Shelf(served.client, "anomaly", "anomaly")
    assert shelf.offered() == ()
    assert "`vesalius finetune anomaly`" in shelf.nothing_here


def test_a_server_that_cannot_be_reached_offers_no_adapter() -> None:
    with Client("http://127.0.0.1:9") as client:
        assert Shelf(client, "classify", "classification").offered() == ()


def test_names_in_a_card_are_set_apart_and_nothing_of_it_is_markup(served: Served) -> None:
    model = course(served)
    model.vesalius.limits = ["`lung fields` were <b>learnt</b>"]
    assert "<li><code>lung fields</code> were &lt;b&gt;learnt&lt;/b&gt;</li>" in about_html(model)


# --- regions ---------------------------------------------------------------------------------------------------------


def test_outlines_say_confidence_and_area_of_each_class(served: Served) -> None:
    panel = regions_of(served)
    found = panel.find(FILM, SEGMENTER, LUNGS, "", Marks())
    card = region_card(found.item, FILM, found.marks)
    assert re.findall(r'class="number">([^<]*)<', card) == [f"{mask.presence:.2f}" for mask in found.item.masks]
    areas = [mask.area_pixels for mask in found.item.masks]
    assert areas[0] > 0
    assert areas[-1] == 0
    assert f"{areas[0]:,} pixels" in card
    assert words.REGION_ABSENT in card
    assert words.NO_SPACING in card
    figure = panel.figure(FILM, Marks(), found)
    assert figure.count("<img") == 1 + sum(area > 0 for area in areas)
    assert card.count(' download="film-') == sum(area > 0 for area in areas)


def test_a_click_is_sent_as_a_mark_in_the_films_own_pixels(served: Served) -> None:
    panel = regions_of(served)
    marks = panel.click(FILM, Marks(), "inside", 0.25, 0.75)
    marks = panel.click(FILM, marks, "outside", 0.5, 0.5)
    panel.find(FILM, SEGMENTER, LUNGS[:1], "", marks)
    assert served.gateway.requests[-1].options == {
        "labels": [LUNGS[0]],
        "points": [[36, 12, True], [24, 24, False]],
        "boxes": [],
    }


def test_own_words_are_asked_for_beside_the_classes(served: Served) -> None:
    regions_of(served).find(FILM, SEGMENTER, LUNGS[:1], " both lungs\n\nboth lungs\n", Marks())
    assert served.gateway.requests[-1].options["labels"] == [LUNGS[0], "both lungs"]


def test_areas_are_in_square_millimetres_where_the_file_has_a_spacing(served: Served) -> None:
    panel = regions_of(served)
    found = panel.find(FILM, SEGMENTER, LUNGS[:1], "", Marks())
    found.item.masks[0].area_mm2 = 12345.6
    card = region_card(found.item, FILM, Marks())
    assert "12,346 mm²" in card
    assert words.NO_SPACING not in card


def test_marks_and_outlines_are_shown_on_their_own_film_alone(served: Served) -> None:
    panel, other = regions_of(served), OpenFilm.read(png_film(4), "other.png")
    marks = panel.click(FILM, Marks(), "inside", 0.5, 0.5)
    found = panel.find(FILM, SEGMENTER, LUNGS, "", marks)
    assert 'class="mark inside"' in panel.figure(FILM, marks, found)
    shown = panel.figure(other, marks, found)
    assert 'class="mark' not in shown
    assert shown.count("<img") == 1
    assert len(panel.click(other, marks, "inside", 0.1, 0.1).points) == 1


def test_masks_are_saved_as_files(served: Served) -> None:
    panel = regions_of(served)
    found = panel.find(FILM, SEGMENTER, LUNGS[:2], "", Marks())
    assert panel.mask_file(FILM, found, "application/x-nifti")[344:347] == b"n+1"
    with pytest.raises(VesaliusError, match=r"DICOM|highdicom"):
        panel.mask_file(FILM, found, "application/dicom")
    assert file_name(OpenFilm.read(png_film(), '../a "b".png'), "left lung", ".png") == "a-b-left-lung.png"


def test_a_segmenter_begins_with_classes_that_do_not_lie_over_one_another(served: Served) -> None:
    model = served.client.model(SEGMENTER)
    assert first_classes(model) == ([*LUNGS, "lungs"], list(LUNGS[:2]))
    model.vesalius.unions = {}
    assert first_classes(model) == (list(LUNGS), list(LUNGS))


# --- anomaly ---------------------------------------------------------------------------------------------------------


def test_strangeness_is_told_in_words_with_each_branch(served: Served) -> None:
    shown = anomaly_of(served).judge(FILM, DETECTOR)
    item = served.client.anomaly([FILM.picture()], DETECTOR).data[0]
    assert item.p_value is not None
    count = round(item.p_value * (item.normals + 1)) - 1
    assert f"Of {item.normals} normal films kept aside, {count} look" in shown.card
    assert shown.card.count("<li") == len(item.branches)
    assert words.BRANCHES["memory"] in shown.card
    assert shown.figure.count("<img") == 2


@pytest.mark.parametrize(("count", "verdict"), [(0, 0), (1, 0), (2, 1), (9, 1), (10, 2), (39, 2), (40, 3), (199, 3)])
def test_the_verdict_follows_the_p_value(count: int, verdict: int) -> None:
    item = AnomalyItem(index=0, p_value=(1 + count) / 200, score=0.5, branches={"new way": 0.5}, normals=199)
    card = strangeness_card(item)
    assert words.ANOMALY_VERDICTS[verdict][1] in card
    assert f"Of 199 normal films kept aside, {count} look" in card
    assert "new way" in card
    assert ('class="flag strong"' in card) == (item.p_value is not None and item.p_value <= 0.05)


# --- course ----------------------------------------------------------------------------------------------------------


def test_an_estimate_says_what_each_part_says_and_what_was_missing(served: Served) -> None:
    card = CoursePanel(served.client).estimate(FILM, course(served), "", ["120", "", ""])
    assert served.gateway.requests[-1].options == {"tabular": {"crp": 120.0}, "contributions": False}
    result = served.client.fuse(FUSER, [FILM.picture()], tabular={"crp": 120.0}).result
    assert result is not None
    shown = re.findall(r'class="name">([^<]*)</span>.*?class="number">([^<]*)<', card)
    assert shown[0] == ("intensive care", f"{result.probability:.2f}")
    assert ("film alone", f"{result.unimodal['film']:.2f}") in shown
    assert ("laboratory alone", f"{result.unimodal['laboratory']:.2f}") in shown
    assert (words.TOGETHER, f"{result.probability:.2f}") in shown
    assert ("film", f"{result.shapley['film']:+.2f}") in shown
    assert "Not given: note, demographics." in card
    assert "Empty in the chart: lactate dehydrogenase." in card


def test_an_estimate_needs_no_film_and_reads_detection_limits(served: Served) -> None:
    panel, model = CoursePanel(served.client), course(served)
    card = panel.estimate(None, model, " Fever. ", ["< 0.5", ">1590", "F"])
    asked = served.gateway.requests[-1]
    assert asked.options == {"tabular": {"crp": "-inf", "ldh": "inf", "sex": "F"}, "contributions": False}
    assert (asked.texts, asked.films) == (("Fever.",), ())
    assert "Not given: film." in card
    assert words.SUBSETS in card


def test_everything_given_is_said_to_be_complete(served: Served) -> None:
    card = CoursePanel(served.client).estimate(FILM, course(served), "Fever.", ["1", "200", "M"])
    assert words.NOTHING_MISSING in card


@pytest.mark.parametrize("typed", ["12,5", "1,200", "high", "nan", "inf", "< low", "1e999"])
def test_what_is_no_number_is_named_and_nothing_is_sent(served: Served, typed: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        CoursePanel(served.client).estimate(FILM, course(served), "", [typed, "", ""])
    assert refused.value.message == words.FIELD_WRONG.format(name="C-reactive protein", value=typed)
    assert served.gateway.requests == []


def test_a_value_that_cannot_be_is_refused_in_the_servers_words(served: Served) -> None:
    with pytest.raises(VesaliusError, match=r"'crp' is 5000 mg/L; possible are 0 to 1000 mg/L"):
        CoursePanel(served.client).estimate(None, course(served), "", ["5000", "", ""])


# --- all of them -----------------------------------------------------------------------------------------------------


def test_a_refused_film_has_no_numbers(served: Served) -> None:
    panel = regions_of(served)
    found = panel.find(PHOTO, SEGMENTER, LUNGS, "", Marks())
    strange = anomaly_of(served).judge(PHOTO, DETECTOR)
    estimated = CoursePanel(served.client).estimate(PHOTO, course(served), "", ["120", "", ""])
    for card in (region_card(found.item, PHOTO, Marks()), strange.card, estimated):
        assert "Not assessed: this looks like a photograph." in card
        assert 'class="number"' not in card
    assert panel.figure(PHOTO, Marks(), found).count("<img") == 1
    assert strange.figure == ""
    assert words.WITHOUT_FILM in estimated


def test_what_is_missing_is_said(served: Served) -> None:
    regions, anomaly = regions_of(served), anomaly_of(served)
    asking: list[tuple[Callable[[], object], str]] = [
        (lambda: regions.find(None, SEGMENTER, LUNGS, "", Marks()), words.NO_FILM),
        (lambda: regions.find(FILM, None, LUNGS, "", Marks()), words.NO_CHOICE),
        (lambda: regions.find(FILM, SEGMENTER, [], " \n", Marks()), words.NOTHING_CHOSEN),
        (lambda: regions.click(None, Marks(), "inside", 0.5, 0.5), words.NO_FILM),
        (lambda: anomaly.judge(None, DETECTOR), words.NO_FILM),
        (lambda: anomaly.judge(FILM, ""), words.NO_CHOICE),
        (lambda: CoursePanel(served.client).estimate(None, course(served), " ", ["", None, ""]), words.NOTHING_GIVEN),
    ]
    for ask, sentence in asking:
        with pytest.raises(VesaliusError) as refused:
            ask()
        assert refused.value.message == sentence


def test_a_busy_server_is_said(served: Served) -> None:
    served.gateway.error = ("overloaded", "The server is busy.")
    model = course(served)
    for ask in (
        lambda: regions_of(served).find(FILM, SEGMENTER, LUNGS, "", Marks()),
        lambda: anomaly_of(served).judge(FILM, DETECTOR),
        lambda: CoursePanel(served.client).estimate(FILM, model, "", ["", "", ""]),
    ):
        with pytest.raises(Overloaded, match="busy"):
            ask()


def test_a_dicom_slice_is_not_assessed_in_words(served: Served) -> None:
    film = OpenFilm.read(dicom_ct_slice(), "slice.dcm")
    found = regions_of(served).find(film, SEGMENTER, LUNGS, "", Marks())
    assert "Not assessed: this looks like an image of modality CT." in region_card(found.item, film, Marks())
