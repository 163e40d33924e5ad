"""A film in a person's hands: read once, shown as the model sees it, by slice and grey-level window.

    bytes --read_film--> OpenFilm --at slice, window--> OpenFilm --pixels(contract)--> what the API will show the model

The very readers and the very `render` of the server, so the picture on the page is the model's input, not a likeness.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.words import WINDOW_DEFAULT
from foundation.image import MedicalImage, Window
from foundation.phantom import Phantom
from foundation.preprocess import InputContract, fit_window, pick_slice, render
from foundation.readers import read_film
from serving.client import Picture

CT_WINDOWS = (
    Window(40.0, 400.0, "soft tissue"),
    Window(-600.0, 1500.0, "lung"),
    Window(400.0, 1800.0, "bone"),
    Window(40.0, 80.0, "brain"),
)
"""The usual ones in Hounsfield units, offered for every CT beside those its file names."""


@dataclass(frozen=True, eq=False)
class OpenFilm:
    """data: the file as dropped. slice_index, window: what is shown; None leaves it to the reader, as the API does."""

    data: bytes
    image: MedicalImage
    name: str
    truth: tuple[str, ...] | None = None  # of a phantom: what was drawn
    slice_index: int | None = None
    window: Window | None = None

    @classmethod
    def read(cls, data: bytes, name: str, truth: tuple[str, ...] | None = None) -> Self:
        """Raises a FilmError that says why a file cannot be shown."""
        return cls(data, read_film(data), name, truth)

    @classmethod
    def of_phantom(cls, phantom: Phantom, name: str) -> Self:
        file = io.BytesIO()
        Image.fromarray(phantom.film).save(file, format="PNG")
        drawn = (" ".join(filter(None, (one.severity, one.side, one.zone, one.name))) for one in phantom.findings)
        return cls.read(file.getvalue(), name, tuple(drawn))

    @cached_property
    def digest(self) -> str:
        return self.image.digest

    @property
    def view(self) -> tuple[str, int, tuple[float, float] | None]:
        """Equal for equal pictures: the film, its slice and its window."""
        return self.digest, self.shown_slice, self._window_pair

    @property
    def shown_slice(self) -> int:
        return pick_slice(self.image, self.slice_index)

    @property
    def shown_window(self) -> Window:
        return self.window or fit_window(self.image, self.slice_index)

    def at(self, *, slice_index: int | None, window: Window | None) -> OpenFilm:
        return replace(self, slice_index=slice_index, window=window)

    def windows(self) -> dict[str, Window | None]:
        """Names of the grey-level windows to choose from; the first is the default, None. Colour films have none."""
        if self.image.is_color:
            return {}
        default = fit_window(self.image, self.slice_index)
        found: dict[str, Window | None] = {WINDOW_DEFAULT.format(name=_label(default)): None}
        is_ct = self.image.modality == "CT" and self.image.pixels.dtype != np.uint8
        # A window goes to the server as center and width, so those that are more than that cannot be asked for.
        offered = [one for one in self.image.windows if one.function in ("linear", "linear_exact")]
        for one in (*offered[1 if offered and offered[0] is default else 0 :], *(CT_WINDOWS if is_ct else ())):
            if (one.center, one.width) != (default.center, default.width):
                found.setdefault(_label(one), Window(one.center, one.width, one.name))
        return found

    def pixels(self, contract: InputContract) -> npt.NDArray[np.uint8]:
        """(S, S, 3): exactly what the model sees."""
        return render(self.image, contract, slice_index=self.slice_index, window=self.window)

    def picture(self) -> Picture:
        """As the client sends it."""
        return Picture(self.data, self.slice_index, self._window_pair)

    @property
    def _window_pair(self) -> tuple[float, float] | None:
        return None if self.window is None else (self.window.center, self.window.width)


def _label(window: Window) -> str:
    name = window.name.removesuffix(" (default)") or "window"
    return f"{name} {window.center:g} / {window.width:g}"


def png_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """(H, W, 3) or (H, W, 4) as a data URI that loses nothing."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
