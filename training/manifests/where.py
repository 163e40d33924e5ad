"""Filters over a manifest's rows: `source=nih_cxr14,view=AP`. A field named twice accepts either value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from foundation.errors import InvalidRequest, ManifestError
from training.manifests.row import FIELDS

if TYPE_CHECKING:
    from training.manifests.manifest import Manifest

Where: TypeAlias = str | Sequence[str] | Mapping[str, str] | None


def parse_where(where: Where) -> dict[str, tuple[str, ...]]:
    """`"source=a,view=AP"` -> {field: accepted values}. A field named twice accepts either value."""
    if where is None:
        return {}
    if isinstance(where, Mapping):
        return {name: (str(value),) for name, value in where.items()}
    clauses = _split_clauses(where) if isinstance(where, str) else [c for text in where for c in _split_clauses(text)]
    wanted: dict[str, tuple[str, ...]] = {}
    for clause in clauses:
        name, equals, value = clause.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(f"filter {clause!r} is not of the form field=value", param="where")
        wanted[name.strip()] = (*wanted.get(name.strip(), ()), value.strip())
    return wanted


def _split_clauses(text: str) -> list[str]:
    """Split at commas outside brackets, so that `orig_size=[128, 128]` stays whole."""
    return [clause.strip() for clause in re.split(r",(?![^\[{(]*[\]})])", text) if clause.strip()]


def filter_rows(manifest: Manifest, where: Where) -> Manifest:
    """Keep the rows that match every field; an unknown field, or a value no row has, is an error naming the known."""
    wanted = parse_where(where)
    known = (*FIELDS, *sorted({name for row in manifest.rows for name in row.extra}))
    for name, values in wanted.items():
        if name not in known:
            raise InvalidRequest(f"unknown field {name!r} in the filter: known are {', '.join(known)}", param="where")
        present = {word for row in manifest.rows for word in row.words(name)}
        for value in values:
            if value not in present:
                shown = ", ".join(sorted(present)[:20]) + (", ..." if len(present) > 20 else "")
                raise InvalidRequest(f"no row has {name}={value!r}: the values are {shown}", param="where")
    kept = manifest.select(lambda row: all(set(row.words(name)) & set(values) for name, values in wanted.items()))
    if not kept.rows:
        raise ManifestError(f"no row of {manifest.path.name} matches {wanted}: loosen the filter", param="where")
    return kept
