"""Content parts of a chat message: text, and films as data URIs, DICOM or NIfTI."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from serving.schemas.common import FilmInput, SliceIndex
from serving.schemas.parsing import Body, field_error


class ImageUrl(Body):
    """OpenAI's image part. Only data URIs: the server fetches nothing. `detail` is accepted and has no effect."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    slice_index: SliceIndex | None = None
    window: tuple[float, float] | None = None


class ContentPart(Body):
    """One part. `type` names the one field that holds its content."""

    type: Literal["text", "image_url", "dicom", "nifti"]
    text: str | None = None
    image_url: ImageUrl | None = None
    dicom: FilmInput | None = None
    nifti: FilmInput | None = None

    @field_validator("image_url", mode="before")
    @classmethod
    def _bare_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("dicom", "nifti", mode="before")
    @classmethod
    def _bare_data(cls, value: Any) -> Any:
        return {"data": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _holds_its_type(self) -> Self:
        held = {name for name in ("text", "image_url", "dicom", "nifti") if getattr(self, name) is not None}
        if held != {self.type}:
            raise field_error(self.type, f"is the content of a part of type '{self.type}', which must hold it alone.")
        return self

    @property
    def film(self) -> FilmInput | None:
        """The part's film, or None for text."""
        if self.image_url is not None:
            url = self.image_url
            return FilmInput(data=url.url, slice_index=url.slice_index, window=url.window)
        return self.dicom or self.nifti
