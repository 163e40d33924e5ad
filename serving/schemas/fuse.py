"""POST /v1/fuse: one patient's outcome from films, a note and fields of a table, any of them left out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from serving.schemas.common import LEAST_INTEGER, MOST_INTEGER, FilmReport, ImageBody, Provenance, Timings
from serving.schemas.parsing import Answer

Cell = float | Annotated[int, Field(ge=LEAST_INTEGER, le=MOST_INTEGER)] | str | bool | None


class FuseBody(ImageBody):
    """All `images` are of the one patient. tabular: by field name; null or left out is missing, "-inf" and "inf" are
    below and above what the laboratory can measure. Sentences of `text` that state the outcome are removed first.
    contributions: also say what each number of the table moved the logit (the operator must have installed captum).
    """

    model: str
    text: str | None = None
    tabular: dict[str, Cell] = Field(default_factory=dict)
    contributions: bool = False


class SubsetScore(Answer):
    """What would be answered were only these modalities known."""

    modalities: list[str]
    probability: float
    logit: float
    method: str


class FusedResult(Answer):
    """probability: calibrated, from all that was given; prior: without any of it. unimodal: each modality by itself.

    shapley: each modality's share of the way from the prior's logit to this one's. subsets: every subset of what was
    given. conformal: which outcomes cannot be ruled out, where the card has a coverage. unusual: fields outside the range of
    the training rows. removed: how many sentences of the note were not read, because they state the outcome.
    contributions: by integrated gradients, what each number moved the logit against the training rows' medians; null
    where it was not asked for, or where they did not add up.
    """

    label: str
    probability: float
    logit: float
    prior: float
    threshold: float
    positive: bool
    method: str
    present: list[str]
    absent: list[str]
    unimodal: dict[str, float]
    subsets: list[SubsetScore]
    shapley: dict[str, float]
    conformal: list[str] = Field(default_factory=list)
    unusual: list[str] = Field(default_factory=list)
    removed: int = 0
    contributions: dict[str, float] | None = None


class FuseAnswer(Answer):
    """`result` is null where a film is not of a kind the model knows: looks_like says of what kind it is."""

    object: Literal["fusion"] = "fusion"
    model: str
    assessed: bool = True
    looks_like: str = ""
    result: FusedResult | None = None
    films: list[FilmReport] = Field(default_factory=list)
    provenance: Provenance | None = None
    timings: Timings | None = None
