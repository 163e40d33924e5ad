"""POST /v1/embeddings: unit vectors of texts and films, in OpenAI's shape. One bad input fails all, as there."""

from __future__ import annotations

import base64
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
from fastapi import Request
from starlette.responses import Response

from foundation.errors import InvalidRequest
from serving.api.answers import documented, film_report, json_answer, while_connected
from serving.api.routes import routes
from serving.api.service import Asked, Service, service_of
from serving.gateway import ModelInfo
from serving.limits import check_count, check_texts
from serving.schemas.common import FilmInput, Provenance, Timings
from serving.schemas.embeddings import Embedding, EmbeddingExtras, EmbeddingsAnswer, EmbeddingsBody, EmbeddingUsage

router = routes("embeddings")


@router.post("/v1/embeddings", **documented(EmbeddingsBody, EmbeddingsAnswer))
async def embeddings(request: Request) -> Response:
    """Embed texts and films into the one space they share."""
    service = service_of(request)
    async with service.receive(request, EmbeddingsBody) as body:
        return json_answer(await while_connected(request, _answer(service, body)))


async def _answer(service: Service, body: EmbeddingsBody) -> EmbeddingsAnswer:
    texts = [(index, part.text) for index, part in enumerate(body.input) if part.text is not None]
    films = _films(body)
    _check(service, body, [text for _, text in texts], films)
    model = service.model_for(body.model, "embed_image" if films else "embed_text")
    if texts:
        model = service.model_for(body.model, "embed_text")
    _check_dimensions(body, model)
    with service.items.take(len(texts) + len(films)):
        questions: list[Coroutine[Any, Any, Asked]] = [_ask_film(service, body, model, *named) for named in films]
        if texts:
            questions.append(service.ask(service.request("embed_text", model, texts=tuple(text for _, text in texts))))
        asked = await service.all_or_none(questions)
    return _assemble(body, model, [index for index, _ in texts], asked)


def _films(body: EmbeddingsBody) -> list[tuple[str, FilmInput]]:
    """Every film with the field it came in, in the order their embeddings are returned."""
    found = [(f"input[{index}]", part.film) for index, part in enumerate(body.input) if part.film is not None]
    return found + [(f"images[{index}]", film) for index, film in enumerate(body.images)]


def _check(service: Service, body: EmbeddingsBody, texts: Sequence[str], films: Sequence[Any]) -> None:
    if not texts and not films:
        raise InvalidRequest("Nothing to embed: send 'input' (texts) or 'images' (films).", param="input")
    check_count("input", len(texts), service.limits.max_texts, least=0)
    check_count("images", len(films), service.limits.max_images, least=0)
    check_texts("input", texts, service.limits.max_text_chars)


def _check_dimensions(body: EmbeddingsBody, model: ModelInfo) -> None:
    if body.dimensions is not None and body.dimensions != model.embed_dim:
        size = f" of {model.embed_dim} numbers" if model.embed_dim else " of one size"
        raise InvalidRequest(f"Model '{model.name}' gives embeddings{size} only. Leave 'dimensions' out.", param="dimensions")


async def _ask_film(service: Service, body: EmbeddingsBody, model: ModelInfo, name: str, film: FilmInput) -> Asked:
    decoded = await service.decode(film, name, body)
    return await service.ask(service.request("embed_image", model, film=decoded))


def _assemble(body: EmbeddingsBody, model: ModelInfo, text_places: Sequence[int], asked: Sequence[Asked]) -> EmbeddingsAnswer:
    """Put each vector where its input stood. `asked` holds one answer a film, then one for all the texts."""
    total = len(body.input) + len(body.images)
    film_places = [place for place in range(total) if place not in set(text_places)]
    vectors: list[Sequence[float]] = [()] * total
    makers: list[Asked] = [asked[0]] * total
    for place, one in zip(film_places, asked, strict=False):
        vectors[place], makers[place] = one.value["embeddings"][0], one
    for place, vector in zip(text_places, asked[-1].value["embeddings"] if text_places else [], strict=True):
        vectors[place], makers[place] = vector, asked[-1]
    tokens = int(asked[-1].value.get("prompt_tokens", 0)) if text_places else 0
    return EmbeddingsAnswer(
        model=model.name,
        data=[Embedding(index=i, embedding=_encoded(vector, body)) for i, vector in enumerate(vectors)],
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        vesalius=EmbeddingExtras(
            films=[film_report(maker.film, body.include_film) for maker in makers],
            provenance=[Provenance.from_value(maker.value) for maker in makers],
            timings=_slowest(asked),
        ),
    )


def _encoded(vector: Sequence[float], body: EmbeddingsBody) -> list[float] | str:
    if body.encoding_format == "float":
        return list(vector)
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")


def _slowest(asked: Sequence[Asked]) -> Timings:
    """The inputs run together, so the longest of each time is the request's."""
    return Timings(
        queue_ms=max(one.timings.queue_ms for one in asked),
        decode_ms=max(one.timings.decode_ms for one in asked),
        compute_ms=max(one.timings.compute_ms for one in asked),
    )
