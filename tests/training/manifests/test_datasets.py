"""Films as tables: what is not known is NaN, streams have their shares, phantoms their exact cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_run import SIZE, phantom

from foundation.errors import InvalidRequest
from foundation.phantom import FINDINGS, Phantom
from foundation.preprocess import InputContract, render
from foundation.readers import read_film
from training.manifests import datasets
from training.manifests.datasets import FilmTable, StreamSampler, join, known_means, phantom_films, real_films, row_targets
from training.manifests.manifest import load_manifest
from training.pretraining.recipe import PretrainRecipe

GRID = 14


@pytest.fixture(scope="module")
def films(tiny: PretrainRecipe) -> FilmTable:
    rows = load_manifest(Path(tiny.data.manifest)).of("train")
    return real_films(rows, SIZE, Path(tiny.data.cache))


@pytest.fixture(scope="module")
def phantoms(tiny: PretrainRecipe) -> FilmTable:
    return phantom_films(tiny.data.phantoms, SIZE, 0, Path(tiny.data.cache), GRID)


def column(table: FilmTable, name: str) -> np.ndarray:
    return table.targets[:, table.target_names.index(name)]


def test_a_target_is_known_inside_its_source_only(films: FilmTable) -> None:
    nih = np.array([stream == "nih_cxr14" for stream in films.streams])
    for name in (*datasets.NIH_FINDINGS, "normal", "ap view"):
        assert np.array_equal(~np.isnan(column(films, name)), nih), name
    for name in ("tuberculosis", "female"):
        assert np.array_equal(~np.isnan(column(films, name)), ~nih), name
    for name in ("child pneumonia", "bacterial"):
        assert np.isnan(column(films, name)).all()
    assert set(column(films, "ap view")[nih]) == {0.0, 1.0}
    assert column(films, "age")[3] == pytest.approx(0.23)


def test_targets_say_what_the_labels_say(tiny: PretrainRecipe, films: FilmTable) -> None:
    rows = load_manifest(Path(tiny.data.manifest)).of("train")
    for index, row in enumerate(rows):
        if row.get("source") == "nih_cxr14":
            told = {name for name in (*datasets.NIH_FINDINGS, "normal") if column(films, name)[index] == 1.0}
            assert told == set(row.labels)
        else:
            assert column(films, "tuberculosis")[index] == float(row.labels == ("tuberculosis",))
    child = replace(rows[0], labels=("bacterial pneumonia",), extra={"source": "kermany"})
    assert row_targets(child) == {"child pneumonia": 1.0, "bacterial": 1.0}
    well = replace(child, labels=("normal",))
    assert row_targets(well) == {"child pneumonia": 0.0}  # which germ is unknown where there is none
    assert row_targets(replace(child, extra={"source": "elsewhere"})) == {}


def test_pixels_are_the_one_preprocess_and_are_kept(tiny: PretrainRecipe, films: FilmTable, tmp_path: Path) -> None:
    rows = load_manifest(Path(tiny.data.manifest)).of("train")
    contract = InputContract(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    for index in (0, len(rows) - 1):
        assert np.array_equal(films.pixels[index], render(read_film(rows[index].image.read_bytes()), contract)[..., 0])
    copy = tmp_path / "film.png"
    copy.write_bytes(rows[0].image.read_bytes())
    first = datasets.cache_films([copy], SIZE, tmp_path)
    copy.unlink()
    assert np.array_equal(datasets.cache_films([copy], SIZE, tmp_path), first)  # found again, not rendered
    assert not list(tmp_path.glob("*.partial*"))


def test_patients_texts_and_native_pixels(films: FilmTable) -> None:
    assert films.weights == pytest.approx(np.full(len(films), 2**-0.5))  # every patient has two films
    assert set(films.native_pixels) == {256}
    for text, stream in zip(films.texts, films.streams, strict=True):
        assert len(text) == (1 if stream == "shenzhen" else 6)


def slow_cells(made: Phantom, name: str) -> np.ndarray:
    edges = [round(np.floor(place * SIZE / GRID)) for place in range(GRID + 1)]
    mask = made.masks[name]
    return np.array([[mask[edges[i] : edges[i + 1], edges[j] : edges[j + 1]].mean() for j in range(GRID)] for i in range(GRID)])


def test_phantoms_have_their_targets_and_the_share_of_each_cell(phantoms: FilmTable) -> None:
    assert phantoms.masks is not None
    for seed in range(len(phantoms)):
        made = phantom(seed)
        assert np.array_equal(phantoms.pixels[seed], made.film)
        assert phantoms.texts[seed] == (made.report,)
        wanted = set()
        for one in made.findings:
            sides = {"bilateral": ("left", "right")}.get(one.side, (one.side,))
            wanted |= {f"phantom {one.name}", *(f"phantom {one.name} {side}" for side in sides if side in ("left", "right"))}
        assert {name for name in phantoms.target_names if column(phantoms, name)[seed] == 1.0} == wanted
        for index, name in enumerate(FINDINGS):
            truth = slow_cells(made, name) if name in made.masks else np.zeros((GRID, GRID))
            np.testing.assert_allclose(phantoms.masks[seed, index], truth, atol=1e-3)
    assert not np.isnan(phantoms.targets).any()


def test_joined_tables_know_no_more_than_their_parts(films: FilmTable, phantoms: FilmTable) -> None:
    both = join([films, phantoms], GRID)
    real = len(films)
    assert len(both) == real + len(phantoms)
    assert np.isnan(both.targets[:real, len(films.target_names) :]).all()
    assert np.isnan(both.targets[real:, : len(films.target_names)]).all()
    np.testing.assert_array_equal(both.targets[:real, : len(films.target_names)], films.targets)
    assert both.masks is not None
    assert np.isnan(both.masks[:real]).all()
    np.testing.assert_array_equal(both.masks[real:], phantoms.masks)
    assert np.array_equal(both.pixels[real], phantoms.pixels[0])
    assert both.streams[real - 1 : real + 1] == ("shenzhen", "phantom")


def test_known_means_are_of_what_is_known() -> None:
    targets = np.array([[1, np.nan, np.nan], [0, np.nan, 0.25], [1, np.nan, np.nan]], np.float32)
    means = known_means(targets)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, [2 / 3, 0.5, 0.25], rtol=1e-6)


def table_of(streams: list[str], weights: list[float] | None = None) -> FilmTable:
    count = len(streams)
    return FilmTable(
        pixels=np.zeros((count, 4, 4), np.uint8),
        target_names=("x",),
        targets=np.zeros((count, 1), np.float32),
        texts=(("",),) * count,
        streams=tuple(streams),
        weights=np.array(weights or [1.0] * count),
        native_pixels=np.full(count, 4, np.int32),
    )


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    table = table_of(["a"] * 40 + ["b"] * 20)
    one, two, other = (StreamSampler(table, {"a": 0.7, "b": 0.3}, 16, seed) for seed in (5, 5, 6))
    later = one.at(9)
    for step in (3, 9, 0, 9):  # in any order
        assert np.array_equal(one.at(step), two.at(step))
    assert np.array_equal(one.at(9), later)
    assert not np.array_equal(one.at(3), one.at(4))
    assert not np.array_equal(one.at(3), other.at(3))


def test_streams_have_their_share_and_no_film_comes_twice() -> None:
    table = table_of(["a"] * 40 + ["b"] * 20 + ["unused"] * 5)
    sampler = StreamSampler(table, {"b": 1.0, "a": 2.5}, 10, 1)  # shares need not sum to one
    counts = []
    for step in range(400):
        drawn = sampler.at(step)
        assert len(set(drawn)) == len(drawn)
        counts.append([np.sum(drawn < 40), np.sum((drawn >= 40) & (drawn < 60)), np.sum(drawn >= 60)])
    np.testing.assert_allclose(np.mean(counts, axis=0), [10 * 2.5 / 3.5, 10 / 3.5, 0], atol=0.1)


def test_heavier_films_come_more_often() -> None:
    sampler = StreamSampler(table_of(["a"] * 8, [3.0] + [1.0] * 7), {"a": 1.0}, 1, 2)
    drawn = np.concatenate([sampler.at(step) for step in range(1000)])
    assert np.mean(drawn == 0) == pytest.approx(0.3, abs=0.04)


def test_a_stream_without_films_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="stream 'c' has no films; those that have are: a, b"):
        StreamSampler(table_of(["a", "b"]), {"a": 1.0, "c": 1.0}, 4, 0)
