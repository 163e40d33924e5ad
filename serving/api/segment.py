"""POST /v1/segment: masks in each film's own pixels, as JSON, or as one DICOM SEG or NIfTI file by what is accepted."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from foundation.errors import InvalidRequest, VesaliusError
from serving.api.answers import documented, item, json_answer, while_connected
from serving.api.films import raw_film
from serving.api.routes import routes
from serving.api.service import Asked, Service, service_of
from serving.gateway import ModelInfo
from serving.limits import check_count, check_texts
from serving.mask_files import MASK_FILES, MaskFile, area_pixels, mask_png
from serving.messages import Film
from serving.schemas.segment import (
    BoxMark,
    ClassMask,
    MaskFormat,
    PointMark,
    RunLengths,
    SegmentAnswer,
    SegmentBody,
    SegmentFilm,
    SegmentItem,
)

router = routes("adapters")


@router.post("/v1/segment", **documented(SegmentBody, SegmentAnswer, files=tuple(MASK_FILES)))
async def segment(request: Request) -> Response:
    """Masks of an adapter's classes, by name, by points or by boxes. A click on a film seen before is cheap."""
    service = service_of(request)
    kind = accepted_file(request)
    async with service.receive(request, SegmentBody) as body:
        if kind is not None:
            content = await while_connected(request, _file(service, body, kind))
            return Response(content, media_type=kind)
        return json_answer(await while_connected(request, _answer(service, body)))


def accepted_file(request: Request) -> str | None:
    """The file type the caller asks for; None for JSON."""
    kinds = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    return next((kind for kind in kinds if kind in MASK_FILES), None)


async def _answer(service: Service, body: SegmentBody) -> SegmentAnswer:
    model = _check(service, body)
    with service.items.take(len(body.images)):
        asked = await service.each([_ask(service, body, model, i, film) for i, film in enumerate(body.images)])
    data = [await segmented(i, one, body.include_film, body.mask_format) for i, one in enumerate(asked)]
    return SegmentAnswer(model=model.name, data=data)


async def _file(service: Service, body: SegmentBody, kind: str) -> bytes:
    """One film's masks as a file. A film that is not assessed has none, and is refused with the reason."""
    model = _check(service, body)
    check_count("images", len(body.images), 1)
    with service.items.take(1):
        (asked,) = await service.all_or_none([_ask(service, body, model, 0, body.images[0])])
        if not asked.value.get("assessed", True):
            raise InvalidRequest(f"Not assessed: this looks like {asked.value.get('looks_like')}.", param="images[0]")
        wanted = MaskFile(
            kind=kind,
            raw=raw_film(body.images[0], "images[0]", body),
            labels=tuple(asked.value["labels"]),
            masks=tuple(asked.value["masks"]),
            model=model.name,
            digest=str(asked.value.get("provenance", {}).get("adapter") or ""),
        )
        return await service.mask_file(wanted)


def _check(service: Service, body: SegmentBody) -> ModelInfo:
    model = service.model_for(body.model, "segment")
    check_count("images", len(body.images), service.limits.max_images)
    check_count("labels", len(body.labels or ()), service.limits.max_labels, least=0)
    check_texts("labels", body.labels or (), service.limits.max_text_chars)
    marked: tuple[SegmentBody | SegmentFilm, ...] = (body, *body.images)
    for film in marked:
        check_count("points", len(film.points or ()), service.limits.max_marks, least=0)
        check_count("boxes", len(film.boxes or ()), service.limits.max_marks, least=0)
    return model


async def _ask(service: Service, body: SegmentBody, model: ModelInfo, index: int, film: SegmentFilm) -> Asked:
    decoded = await service.decode(film, f"images[{index}]", body)
    points = body.points if film.points is None else film.points
    boxes = body.boxes if film.boxes is None else film.boxes
    return await service.ask(service.request("segment", model, film=decoded, options=options_of(body.labels, points, boxes)))


def options_of(labels: Sequence[str] | None, points: Sequence[PointMark], boxes: Sequence[BoxMark]) -> dict[str, Any]:
    """What the engine is told; see `serving/messages.py`."""
    return {
        "labels": labels,
        "points": [[point.row, point.column, point.inside] for point in points],
        "boxes": [[box.top, box.left, box.bottom, box.right] for box in boxes],
    }


async def segmented(index: int, asked: Asked | VesaliusError, include_film: bool, mask_format: MaskFormat) -> SegmentItem:
    answer = item(SegmentItem, index, asked, include_film)
    if isinstance(asked, VesaliusError) or not answer.assessed:
        return answer
    answer.masks = await asyncio.to_thread(_masks, asked.value, asked.film, mask_format)
    answer.found = [mask.label for mask in answer.masks if mask.found]
    answer.nothing_here = not answer.found
    return answer


def _masks(value: Mapping[str, Any], film: Film | None, mask_format: MaskFormat) -> list[ClassMask]:
    made = []
    spacing_mm = film.spacing_mm if film is not None else None
    for label, presence, threshold, rle in zip(
        value["labels"], value["presence"], value["thresholds"], value["masks"], strict=True
    ):
        area = area_pixels(rle)
        mask = ClassMask(label=label, found=area > 0, presence=presence, threshold=threshold, area_pixels=area)
        mask.by_words = label in value.get("words", ())
        if spacing_mm is not None:
            mask.area_mm2 = area * spacing_mm[0] * spacing_mm[1]
        if mask_format == "rle":
            mask.rle = RunLengths.model_validate(rle)
        else:
            mask.png = "data:image/png;base64," + base64.b64encode(mask_png(rle)).decode("ascii")
        made.append(mask)
    return made
