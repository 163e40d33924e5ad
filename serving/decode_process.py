"""The process that turns a stranger's bytes into pixels. It holds no torch, no secrets and nobody else's film.

Its bounds: address space, no files written, no core dump; the time limit is its parent's, who kills it. Standard
error is closed once it runs, because a decoding library's own text may hold what the film says about a patient.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from foundation.errors import FilmError, FilmTooLarge, FilmUnreadable, InvalidRequest, VesaliusError
from foundation.image import MedicalImage, Window
from foundation.preprocess import LARGE_BYTES, InputContract, pick_slice, render
from foundation.readers import read_film
from serving.arena import Arena
from serving.mask_files import write_mask_file
from serving.messages import Film, RawFilm
from serving.spawn import parent_arena, parent_channel
from serving.transport import (
    PeerLostError,
    contract_from_plain,
    film_to_plain,
    mask_file_from_plain,
    places_of,
    raw_film_from_plain,
)


def main() -> None:
    channel, arena = parent_channel(), parent_arena()
    confine(int(os.environ.get("VESALIUS_DECODE_BYTES", 0)))
    channel.send({"kind": "hello"})
    silence()
    helper = ThreadPoolExecutor(1)
    for message in channel:
        try:
            channel.send(answer(message, arena, helper))
        except PeerLostError:
            return


def answer(message: Mapping[str, Any], arena: Arena | None = None, helper: Executor | None = None) -> dict[str, Any]:
    """A film, masks written over one, or the error that says why not; whatever the bytes, never a library's own text."""
    try:
        if message["kind"] == "mask_file":
            return {"kind": "file", "content": write_mask_file(mask_file_from_plain(message["wanted"]))}
        raw, contract = raw_film_from_plain(message["raw"]), contract_from_plain(message["contract"])
        film = decode(raw, contract, helper, is_alone=message["is_alone"])
        plain = film_to_plain(film, arena)
        for place in places_of({"film": plain, "others": ()}):
            arena.free(place)  # type: ignore[union-attr]  # the parent has read it before it asks again
        return {"kind": "film", "film": plain}
    except (FilmError, InvalidRequest) as error:
        return refusal(error)
    except MemoryError:
        return refusal(FilmTooLarge("The film needs more memory to decode than one film may take. Send a smaller one."))
    except Exception:  # a codec's own error; the caller must have an answer all the same
        return refusal(FilmUnreadable("The film cannot be decoded: it is damaged or incomplete. Export it again."))


def decode(raw: RawFilm, contract: InputContract, helper: Executor | None = None, *, is_alone: bool = True) -> Film:
    """What the pool answers with; also the plain, in-process truth that tests compare it to.

    helper: a thread that digests a large film beside its rendering, and then takes a part of that where the film is alone
    (a rendering in parts costs more processor than one in one go).
    """
    start = time.perf_counter()
    image = read_film(raw.data)
    window = Window(*raw.window) if raw.window is not None else None
    with _digest(image, helper) as digest:
        beside = helper if is_alone else None
        pixels = render(image, contract, slice_index=raw.slice_index, window=window, helper=beside)
    return Film(
        pixels=pixels,
        digest=digest(),
        modality=image.modality,
        view=image.view,
        source_format=image.source_format,
        slices=image.slices,
        slice_index=pick_slice(image, raw.slice_index),
        notes=image.notes,
        decode_ms=(time.perf_counter() - start) * 1000,
        height=int(image.pixels.shape[1]),
        width=int(image.pixels.shape[2]),
        spacing_mm=image.spacing_mm[1:] if image.spacing_mm else None,
    )


@contextmanager
def _digest(image: MedicalImage, helper: Executor | None) -> Iterator[Callable[[], str]]:
    """The digest of a large film is taken by the helper while the block runs; neither holds the interpreter's lock."""
    if helper is None or image.pixels.nbytes < LARGE_BYTES:
        yield lambda: image.digest
        return
    begun = helper.submit(lambda: image.digest)
    try:
        yield begun.result
    finally:
        wait([begun])


def refusal(error: VesaliusError) -> dict[str, Any]:
    return {"kind": "refused", "code": error.code, "message": error.message, "param": error.param}


def confine(address_space_bytes: int) -> None:
    """Bind this process: memory, no files, no core. Zero leaves the memory as it is."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if address_space_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))


def silence() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)


if __name__ == "__main__":
    main()
