"""POST /v1/zero_shot: films against the caller's own labels; and the Hugging Face pipeline's shape of the same."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from serving.schemas.common import Films, ImageBody, Item, Strings
from serving.schemas.parsing import Answer, Body, field_error

Scoring = Literal["softmax", "sigmoid", "pairwise"]


class ZeroShotBody(ImageBody):
    """`templates` each hold one "{}" for the label. `negatives`, one a label, make prompt pairs.

    softmax: the labels compete, scores sum to one. sigmoid: each label by itself, by the model's own scale
    and bias. pairwise: each label against its negative prompt ("no LABEL" where none is given).
    """

    model: str | None = None
    labels: Strings
    templates: Strings | None = None
    negatives: Strings | None = None
    scoring: Scoring | None = Field(default=None, description="softmax; pairwise when negatives are given")
    format: Literal["vesalius", "hf"] = "vesalius"

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise field_error("labels", "holds the same label twice; name each once.")
        for template in self.templates or []:
            if template.count("{}") != 1:
                raise field_error("templates", 'has an entry without exactly one "{}" for the label.')
        if self.negatives is not None and len(self.negatives) != len(self.labels):
            raise field_error(
                "negatives", f"has {len(self.negatives)} entries for {len(self.labels)} labels; give one for each."
            )
        if self.negatives is not None and self.scoring not in (None, "pairwise"):
            raise field_error("negatives", "is only used by scoring 'pairwise'. Leave it out or choose that.")
        return self

    @property
    def effective_scoring(self) -> Scoring:
        return self.scoring or ("pairwise" if self.negatives is not None else "softmax")

    @property
    def effective_negatives(self) -> list[str] | None:
        if self.effective_scoring != "pairwise":
            return None
        return self.negatives or [f"no {label}" for label in self.labels]


class HuggingFaceParameters(Body):
    candidate_labels: Strings
    hypothesis_template: str | None = None


class HuggingFaceBody(Body):
    """{"inputs": image or images, "parameters": {"candidate_labels": [...], "hypothesis_template": "..."}}."""

    film_field: ClassVar[str] = "inputs"

    inputs: Films = Field(default_factory=list)
    parameters: HuggingFaceParameters
    model: str | None = None
    is_list: bool = Field(default=False, exclude=True, json_schema_extra={"readOnly": True})

    @model_validator(mode="before")
    @classmethod
    def _remember_shape(cls, value: Any) -> Any:
        """One image is answered by one list, a list of images by a list of lists, as the pipeline does."""
        if not isinstance(value, dict):
            return value
        if "is_list" in value:
            raise field_error("is_list", "is not known here. Check its spelling or leave it out.")
        return {**value, "is_list": isinstance(value.get("inputs"), list)}


class LabelScore(Answer):
    label: str
    score: float


class ZeroShotScore(LabelScore):
    logit: float


class ZeroShotItem(Item):
    """`scores` in the order of the labels; empty when the film was not assessed or failed."""

    scores: list[ZeroShotScore] = Field(default_factory=list)
    calibration: str | None = None


class ZeroShotAnswer(Answer):
    object: Literal["zero_shot"] = "zero_shot"
    model: str
    labels: list[str]
    templates: list[str]
    negatives: list[str] | None = None
    scoring: Scoring
    data: list[ZeroShotItem]
