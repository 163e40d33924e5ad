"""From a caller's JSON to a checked model, or to one InvalidRequest that names the field at fault.

The sentences are ours: pydantic's own text never reaches a caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from foundation.errors import InvalidRequest


class Body(BaseModel):
    """Base of what callers send: unknown fields are errors, numbers are finite.

    film_field: which field the files of a multipart request become.
    """

    film_field: ClassVar[str] = "images"
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Answer(BaseModel):
    """Base of what callers get. Readers of an answer ignore fields they do not know."""

    model_config = ConfigDict(extra="ignore")


BodyT = TypeVar("BodyT", bound=Body)

_OURS = "vesalius"


def field_error(name: str, sentence: str) -> PydanticCustomError:
    """What a validator raises: `sentence` follows "Field 'NAME' " and says what is wrong and what to do."""
    return PydanticCustomError(_OURS, "{sentence}", {"name": name, "sentence": sentence})


_EXPECTED: Mapping[str, str] = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def parse_json(model: type[BodyT], data: bytes) -> BodyT:
    """Check a JSON body. Raises InvalidRequest for the first thing that is wrong."""
    try:
        return model.model_validate_json(data)
    except ValidationError as problem:
        raise _sentence(problem) from None


def parse_fields(model: type[BodyT], fields: Mapping[str, Any]) -> BodyT:
    """Check fields that were gathered from a form. Raises InvalidRequest for the first thing that is wrong."""
    try:
        return model.model_validate(dict(fields))
    except ValidationError as problem:
        raise _sentence(problem) from None


def _name(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") -> "messages[0].content"."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def _sentence(problem: ValidationError) -> InvalidRequest:
    first = problem.errors(include_url=False, include_input=False)[0]
    kind, location, context = first["type"], first["loc"], first.get("ctx", {})
    if kind == _OURS and context["name"]:
        location = (*location, context["name"])
    name = _name(location)
    field = f"Field '{name}'" if name else "The body"
    return InvalidRequest(_explain(kind, field, context), param=name or None)


def _explain(kind: str, field: str, context: Mapping[str, Any]) -> str:
    if kind == "json_invalid":
        return "The body is not valid JSON."
    if kind == "extra_forbidden":
        return f"{field} is not known here. Check its spelling or leave it out."
    if kind == "missing":
        return f"{field} is required."
    if kind == _OURS:
        return f"{field} {context['sentence']}"
    if kind in ("literal_error", "enum"):
        return f"{field} must be one of {context['expected']}."
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        sign, bound = {
            "greater_than_equal": ("at least", context.get("ge")),
            "greater_than": ("more than", context.get("gt")),
            "less_than_equal": ("at most", context.get("le")),
            "less_than": ("less than", context.get("lt")),
        }[kind]
        return f"{field} must be {sign} {bound}."
    if kind in ("too_short", "too_long"):
        return f"{field} must have {context.get('min_length', context.get('max_length'))} entries."
    if kind in _EXPECTED:
        return f"{field} must be {_EXPECTED[kind]}."
    return f"{field} has a value that cannot be used."
