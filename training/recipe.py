"""Recipes: TOML files that say how weights are made. Unknown keys are errors that name them."""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from foundation.errors import InvalidRequest

T = TypeVar("T")
RECIPES = Path(__file__).parent / "recipes"


def read_recipe(where: str, kind: type[T]) -> T:
    """The recipe of that name under `training/recipes/`, or in that TOML file, as a dataclass of `kind`."""
    path = Path(where)
    if path.suffix != ".toml":
        path = RECIPES / f"{where}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise InvalidRequest(f"There is no recipe {where!r}. Name a TOML file or one of: {known}.", param="recipe")
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"The recipe {path.name} is not valid TOML.", param="recipe") from error
    return fill(kind, values, path.name)


def fill(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass of `kind` from plain values, nested dataclasses and tuples of them included."""
    hints = get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise InvalidRequest(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}.", param=unknown[0])
    try:
        return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()})
    except TypeError as error:
        missing = sorted(
            field.name
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
            if field.name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        raise InvalidRequest(f"{where}: missing key {', '.join(missing) or 'of another type'}.", param="recipe") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None  # TOML has no null, but a card tells its recipe in JSON
        hint = next(option for option in get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return fill(hint, value, where)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_convert(get_args(hint)[0], item, where) for item in value)
    plain = get_origin(hint) or hint
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(plain, type) and plain in (str, int, float, bool) and not isinstance(value, plain):
        raise InvalidRequest(f"{where}: expected {plain.__name__}, got {value!r}.", param=where.rsplit(" ", 1)[-1])
    return value
