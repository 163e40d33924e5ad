"""Recipes: what a TOML file says becomes a dataclass, or the key that is wrong is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from foundation.errors import InvalidRequest
from training.recipe import RECIPES, fill, read_recipe


@dataclass(frozen=True)
class Stage:
    name: str
    rate: float = 0.5
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    name: str
    stage: tuple[Stage, ...]
    words: tuple[str, ...] = ()
    limit: int | None = None
    is_fast: bool = False


WHOLE = """
name = "one"
words = ["a", "b"]
limit = 3
[[stage]]
name = "first"
rate = 1
shares = { a = 0.5 }
[[stage]]
name = "second"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "made.toml"
    path.write_text(text)
    return str(path)


def test_nested_values_become_dataclasses(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, WHOLE), Recipe)
    assert recipe == Recipe("one", (Stage("first", 1.0, {"a": 0.5}), Stage("second")), ("a", "b"), 3)
    assert isinstance(recipe.stage[0].rate, float)


@pytest.mark.parametrize(
    ("change", "sentence", "param"),
    [
        (("limit = 3", "limits = 3"), r"made\.toml: unknown key 'limits'; known keys: is_fast, limit, name", "limits"),
        (("rate = 1", "rates = 1"), r"made\.toml: stage: unknown key 'rates'; known keys: name, rate, shares", "rates"),
        (('name = "one"', ""), r"made\.toml: missing key name", "recipe"),
        (("rate = 1", 'rate = "1"'), r"rate: expected float, got '1'", "rate"),
        (("limit = 3", "is_fast = 1"), r"is_fast: expected bool, got 1", "is_fast"),
        (("limit = 3", "limit = "), "not valid TOML", "recipe"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], sentence: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as refusal:
        read_recipe(write(tmp_path, WHOLE.replace(*change)), Recipe)
    assert refusal.value.param == param


def test_an_unknown_recipe_is_answered_with_the_known() -> None:
    bundled = sorted(path.stem for path in RECIPES.iterdir() if path.suffix == ".toml")
    assert {"cxr-findings", "lungs"} <= set(bundled)
    with pytest.raises(InvalidRequest, match=f"no recipe 'nowhere'.*one of: {', '.join(bundled)}\\."):
        read_recipe("nowhere", Recipe)


def test_fill_takes_plain_values() -> None:
    assert fill(Stage, {"name": "x", "shares": {"a": 1}}, "here").name == "x"
