"""Made films and manifests: a finding is a bright patch in a fixed place, so that what should be learnt can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import register_tiny_visformer, tiny_recipe, write_manifest, write_text_tower

from training.pretraining.pretrain import Pretraining
from training.pretraining.recipe import PretrainRecipe

MadeFilms = Callable[..., Path]


@pytest.fixture
def made_films(tmp_path: Path) -> MadeFilms:
    """Writes `count` films of 64 px a split; every other has "effusion" (bright lower left), every third "mass"."""

    def write(count: int = 24, source: str = "made", splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
        random = np.random.default_rng(0)
        lines = []
        for number in range(count * len(splits)):
            labels = [name for name, every in (("effusion", 2), ("mass", 3)) if number % every == 0]
            film = random.integers(40, 90, (64, 64))
            if "effusion" in labels:
                film[40:, :28] += 130
            if "mass" in labels:
                film[8:24, 36:56] += 100
            name = f"{source}-{number}.png"
            Image.fromarray(film.astype(np.uint8)).save(tmp_path / name)
            line: dict[str, Any] = {"id": name, "image": name, "patient_id": f"{source}{number}", "source": source}
            line |= {"split": splits[number // count], "labels": labels or ["normal"], "licence": "made"}
            line |= {"view": ("AP", "PA")[number % 4 // 2], "age": 30 + number % 40, "orig_size": [64, 64]}
            line |= {"text": f"reading {number % 8}", "text_kind": "radiologist_reading"}
            lines.append(json.dumps(line))
        path = tmp_path / "manifest.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PretrainRecipe:
    """A recipe of two short stages whose manifest, text tower and film cache are there."""
    register_tiny_visformer()
    folder = tmp_path_factory.mktemp("tiny_run")
    (folder / "text").mkdir()
    return tiny_recipe(write_manifest(folder), write_text_tower(folder / "text"), folder / "cache")


@pytest.fixture(scope="session")
def finished_run(tiny: PretrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that recipe's run, never interrupted."""
    return Pretraining(tiny, tmp_path_factory.mktemp("finished")).run()
