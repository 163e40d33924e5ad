"""The decode pool: the same film as in-process decoding, and a bad film costs nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_api import png_film

from foundation.errors import DeadlineExceeded, FilmUnreadable, FilmUnsupported, InvalidRequest
from foundation.preprocess import LARGE_BYTES, InputContract, render
from foundation.readers import read_film
from serving.decode_pool import DecodeConfig, DecodePool
from serving.decode_process import decode
from serving.messages import RawFilm
from serving.transport import AsyncChannel

CONTRACT = InputContract(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def test_pool_films_equal_in_process_films_and_refusals_keep_their_kind() -> None:
    async def body() -> None:
        pool = DecodePool(DecodeConfig(processes=2))
        await pool.start()
        try:
            films = [RawFilm(png_film(seed)) for seed in range(6)]
            decoded = await asyncio.gather(*(pool.decode(raw, CONTRACT) for raw in films))
            for raw, film in zip(films, decoded, strict=True):
                truth = decode(raw, CONTRACT)
                assert np.array_equal(film.pixels, truth.pixels)
                assert (film.digest, film.source_format, film.slices) == (truth.digest, "png", 1)
            with pytest.raises(FilmUnsupported):
                await pool.decode(RawFilm(b"not a film at all"), CONTRACT)
            with pytest.raises(FilmUnreadable):
                await pool.decode(RawFilm(png_film(1)[:-40]), CONTRACT)
            with pytest.raises(InvalidRequest):
                await pool.decode(RawFilm(png_film(1), slice_index=3), CONTRACT)
            assert pool.replaced == 0
        finally:
            await pool.close()

    asyncio.run(body())


@pytest.mark.parametrize("side", [64, 1200])  # a helper takes the digest and a part of the rendering of the second
def test_a_film_is_digested_and_rendered_alike_at_any_size(side: int) -> None:
    data, contract = png_film(size=side), InputContract(64, (0.5,) * 3, (0.25,) * 3)
    image = read_film(data)
    assert (image.pixels.nbytes >= LARGE_BYTES) == (side == 1200)
    with ThreadPoolExecutor(1) as helper:
        beside = (decode(RawFilm(data), contract, helper, is_alone=is_alone) for is_alone in (True, False))
        for film in (decode(RawFilm(data), contract), *beside):
            assert film.digest == image.digest
            assert np.array_equal(film.pixels, render(image, contract))
        with pytest.raises(InvalidRequest):
            decode(RawFilm(data, slice_index=3), contract, helper)


def test_a_decoder_is_told_whether_its_film_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    send = AsyncChannel.send

    async def noted(channel: AsyncChannel, message: Mapping[str, Any]) -> None:
        told.append(message["is_alone"])
        await send(channel, message)

    async def body() -> None:
        pool = DecodePool(DecodeConfig(processes=2))
        await pool.start()
        monkeypatch.setattr(AsyncChannel, "send", noted)
        try:
            await pool.decode(RawFilm(png_film(1)), CONTRACT)
            await asyncio.gather(*(pool.decode(RawFilm(png_film(seed)), CONTRACT) for seed in range(2)))
            await pool.decode(RawFilm(png_film(1)), CONTRACT)
        finally:
            await pool.close()

    asyncio.run(body())
    assert (told[0], told[-1]) == (True, True)
    assert not all(told)


@pytest.mark.parametrize(
    ("what", "decoders", "error"),
    [(b"spin", 1, FilmUnreadable), (b"hang", 1, DeadlineExceeded), (b"crash", 2, FilmUnreadable)],  # a crash is tried once more
)
def test_a_lost_decoder_is_replaced_and_only_its_film_is_refused(
    what: bytes, decoders: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    async def body() -> None:
        pool = DecodePool(DecodeConfig(processes=1, time_limit_s=1.0, wall_limit_s=10.0, module="bad_decoder"))
        await pool.start()
        try:
            bad, good = await asyncio.gather(
                pool.decode(RawFilm(what), CONTRACT), pool.decode(RawFilm(b"good"), CONTRACT), return_exceptions=True
            )
            assert isinstance(bad, error)
            assert not isinstance(good, BaseException)
            assert good.digest == "good"
            assert pool.replaced == decoders
        finally:
            await pool.close()

    asyncio.run(body())


def test_what_cannot_be_sent_costs_the_pool_no_decoder_for_good() -> None:
    async def body() -> None:
        pool = DecodePool(DecodeConfig(processes=1))
        await pool.start()
        try:
            with pytest.raises(OverflowError):
                await pool.decode(RawFilm(png_film(1), slice_index=2**70), CONTRACT)
            assert (await pool.decode(RawFilm(png_film(1)), CONTRACT)).source_format == "png"
            assert pool.replaced == 1
        finally:
            await pool.close()

    asyncio.run(body())


def test_a_film_whose_decoder_is_given_no_processor_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    async def body() -> None:
        pool = DecodePool(DecodeConfig(processes=1, time_limit_s=0.5, module="bad_decoder"))
        await pool.start()
        try:
            assert (await pool.decode(RawFilm(b"late"), CONTRACT)).digest == "late"
            assert pool.replaced == 0
        finally:
            await pool.close()

    asyncio.run(body())


def test_a_caller_who_leaves_does_not_cost_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    async def body() -> None:
        pool = DecodePool(DecodeConfig(processes=1, module="bad_decoder"))
        await pool.start()
        try:
            leaving = asyncio.create_task(pool.decode(RawFilm(b"first"), CONTRACT))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await pool.decode(RawFilm(b"second"), CONTRACT)).digest == "second"
            assert pool.replaced == 0
        finally:
            await pool.close()

    asyncio.run(body())
