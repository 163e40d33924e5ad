"""What was outlined, as a card: each class with its colour, its confidence, its area, and its mask to save."""

from __future__ import annotations

import html
import re

from app import words
from app.bars import Bar, track_html
from app.evidence import card, provenance_html, refusal
from app.film import OpenFilm
from app.marks import Marks, extent
from app.outline import color_of
from serving.schemas.segment import ClassMask, SegmentItem


def region_card(item: SegmentItem, film: OpenFilm, marks: Marks) -> str:
    if not item.assessed:
        return card(words.REGIONS_CARD, [*refusal(item.looks_like), provenance_html(item.provenance, item.timings)])
    rows = "".join(_row(index, mask, film, marks) for index, mask in enumerate(item.masks))
    notes = [words.REGIONS_NOTE]
    if item.found and all(mask.area_mm2 is None for mask in item.masks):
        notes.append(words.NO_SPACING)
    said = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in notes)
    provenance = provenance_html(item.provenance, item.timings)
    return card(words.REGIONS_CARD, [f'<ul class="regions">{rows}</ul>', said, provenance])


def file_name(film: OpenFilm, label: str, ending: str) -> str:
    """For the browser to save under; nothing but letters, digits, dots and dashes."""
    stem = film.name.rsplit(".", 1)[0] or "film"
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{stem}-{label}").strip("-.") + ending


def _row(index: int, mask: ClassMask, film: OpenFilm, marks: Marks) -> str:
    bar = Bar(mask.label, mask.presence, mask.threshold)
    values = {"value": f"{mask.presence:.2f}", "threshold": f"{mask.threshold:.2f}"}
    said = html.escape(words.REGION_CONFIDENCE.format(**values))
    return (
        f'<li class="{"found" if mask.found else "bar"}">'
        f'<span class="swatch" style="background:rgb{color_of(index)}" aria-hidden="true"></span>'
        f'<span class="name">{html.escape(mask.label)}</span>'
        f'<span class="track" title="{said}" role="img" aria-label="{said}">{track_html(bar)}</span>'
        f'<span class="number">{mask.presence:.2f}</span>'
        f'<span class="detail">{_detail(mask, film, marks)}</span></li>'
    )


def _detail(mask: ClassMask, film: OpenFilm, marks: Marks) -> str:
    if not mask.found:
        return html.escape(words.REGION_ABSENT if marks.is_empty else words.REGION_ABSENT_MARKED)
    height, width = extent(film)
    share = f"{100 * mask.area_pixels / (height * width):.1f} %"
    parts = [words.AREA_PIXELS.format(area=f"{mask.area_pixels:,}", share=share)]
    if mask.area_mm2 is not None:
        parts.insert(0, words.AREA_MM2.format(area=f"{mask.area_mm2:,.0f}"))
    parts += [words.REGION_BY_WORDS] if mask.by_words else []
    return f"{html.escape('; '.join(parts))} {_link(mask, film)}"


def _link(mask: ClassMask, film: OpenFilm) -> str:
    """The mask is inside the page itself: nothing is kept to be fetched."""
    if mask.png is None:
        return ""
    name = html.escape(file_name(film, mask.label, ".png"))
    said = html.escape(words.SAVE_PNG_OF.format(label=mask.label))
    return f'<a href="{html.escape(mask.png)}" download="{name}" title="{said}" aria-label="{said}">{words.SAVE_PNG}</a>'
