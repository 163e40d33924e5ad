"""The film as HTML: the pixels the model saw, a heat map over them, and a caption that says what is shown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app import words
from app.film import OpenFilm, png_uri
from app.heat import overlay
from foundation.preprocess import InputContract
from serving.schemas.chat import HeatMap


@dataclass(frozen=True, eq=False)
class Layer:
    """A picture over the model's square, (F, F, 3) or (F, F, 4), and what a person who does not see it is told."""

    pixels: npt.NDArray[np.uint8]
    text: str


def figure_html(film: OpenFilm, contract: InputContract, heat: HeatMap | None = None) -> str:
    """The film with what is known of it; heat: laid over it."""
    layers, lines = [], _caption(film, contract.size)
    if heat is not None:
        layers.append(Layer(overlay(heat, contract.size), words.MAP_PICTURE.format(label=heat.label)))
        lines.append(_legend(heat))
    return layered_html(film, contract, layers, lines)


def layered_html(
    film: OpenFilm,
    contract: InputContract,
    layers: Sequence[Layer] = (),
    lines: Sequence[str] = (),
    marks: str | None = None,
) -> str:
    """Everything is inside the page itself: no file of the film is served. lines: of the caption, HTML already escaped.

    marks: HTML to lay on top; None where the film takes no clicks.
    """
    pictures = [Layer(film.pixels(contract), words.PICTURE.format(name=film.name)), *layers]
    drawn = "".join(_layer(one) for one in pictures) + (marks or "")
    frame = f'<div class="frame{"" if marks is None else " markable"}">{drawn}</div>'
    return f'<figure class="film">{frame}<figcaption>{"".join(lines)}</figcaption></figure>'


def _layer(layer: Layer) -> str:
    return f'<img src="{png_uri(layer.pixels)}" alt="{html.escape(layer.text)}" draggable="false">'


def _caption(film: OpenFilm, size: int) -> list[str]:
    image = film.image
    if film.truth is not None:
        shown = [words.DRAWN.format(truth=", ".join(film.truth) or words.DRAWN_NORMAL)]
        lines = [f"<p><b>{html.escape(shown[0])}</b></p>"]
    else:
        kind = words.FORMATS.get(image.source_format, image.source_format)
        place = words.SLICE_SHORT.format(index=film.shown_slice + 1, slices=image.slices) if image.is_volume else ""
        facts = ", ".join(html.escape(fact) for fact in (kind, image.modality, image.view, place) if fact)
        lines = [f"<p><b>{html.escape(film.name)}</b> &middot; {facts}</p>"]
    lines += [f"<p>{html.escape(note)}</p>" for note in image.notes]
    return [*lines, f"<p>{html.escape(words.AS_SEEN.format(size=size))}</p>"]


def _legend(heat: HeatMap) -> str:
    sentence = (words.MAP_OF if heat.high > 0 else words.MAP_AGAINST).format(label=heat.label)
    scale = f'{words.MAP_LESS}<span class="legend" role="presentation"></span>{words.MAP_MORE}'
    return f"<p>{html.escape(sentence)} {scale}</p>"
