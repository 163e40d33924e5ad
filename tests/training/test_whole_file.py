"""Files that are whole or not there: writers at once, writers that fail, writers that are killed."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from foundation.phantom import make_phantom
from foundation.preprocess import InputContract
from training.finetuning.classification import phantom_rows
from training.manifests import datasets
from training.whole_file import whole

REPOSITORY = Path(__file__).resolve().parents[2]
CONTRACT = InputContract(size=48, mean=(0.5,) * 3, std=(0.5,) * 3)
# Writes CHARACTER over all of TARGET, but halfway says so and waits for its standard input.
WRITER = """
import sys
from pathlib import Path
from training.whole_file import whole
with whole(Path(sys.argv[1])) as partial, partial.open("w") as file:
    file.write(sys.argv[2] * 1000)
    file.flush()
    print("halfway", flush=True)
    sys.stdin.readline()
    file.write(sys.argv[2] * 1000)
"""
# Makes the cache of two films, in step with whoever else does: each waits before its second film until told to go on.
CACHER = """
import sys
from pathlib import Path
from training.manifests import datasets

class Pool:
    def __init__(self, workers): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def map(self, make, paths, chunksize):
        for number, path in enumerate(paths):
            if number:
                print("halfway", flush=True)
                sys.stdin.readline()
            yield make(path)

datasets.ProcessPoolExecutor = Pool
folder = Path(sys.argv[1])
print(datasets.cache_films(sorted(folder.glob("*.png")), 32, folder / "cache").sum(), flush=True)
"""


def begin(code: str, *words: str | Path) -> subprocess.Popen[str]:
    """The process, halfway through its file."""
    command = [sys.executable, "-c", code, *map(str, words)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "halfway\n"
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Lets it go on; what it printed since."""
    told, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return told


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_target_is_replaced_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "made" / "films.npy"
    for value in (1, 2):
        with whole(target) as partial:
            assert (partial.parent, partial.suffix) == (target.parent, ".npy")
            np.save(partial, np.full(3, value))
            assert not target.is_file() if value == 1 else np.load(target).tolist() == [1, 1, 1]
        assert np.load(target).tolist() == [value] * 3
        assert names(target.parent) == ["films.npy"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)  # shared caches stay readable


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with whole(target) as partial:
            np.save(partial, np.zeros(3))
            raise error

    target = tmp_path / "films.npy"
    with pytest.raises(error):
        fail()
    assert not names(tmp_path)
    target.write_bytes(b"what was there")
    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["films.npy"]
    assert target.read_bytes() == b"what was there"


def test_two_writers_at_once_write_a_file_each(tmp_path: Path) -> None:
    target = tmp_path / "text.txt"
    first, second = begin(WRITER, target, "a"), begin(WRITER, target, "b")
    assert len(names(tmp_path)) == 2  # the second has left the first's alone
    finish(first)
    assert target.read_text() == "a" * 2000
    finish(second)
    assert target.read_text() == "b" * 2000
    assert names(tmp_path) == ["text.txt"]


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    target, other = tmp_path / "text.txt", tmp_path / "text.partial-note.md"
    other.write_text("of another name")
    kill(begin(WRITER, target, "a"))
    (left,) = set(names(tmp_path)) - {other.name}
    assert left.startswith("text.partial-")
    living = begin(WRITER, target, "b")
    assert left not in names(tmp_path)
    with whole(target) as partial:
        partial.write_text("c")
    finish(living)  # whose file was not taken for a killed one's
    assert target.read_text() == "b" * 2000
    assert names(tmp_path) == [other.name, "text.txt"]


def test_two_processes_make_one_cache_of_films_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(make_phantom(number, 64).film).save(path)
    expected = np.stack([datasets.render_grey(path, 32) for path in paths])
    first, second = begin(CACHER, tmp_path), begin(CACHER, tmp_path)
    assert [int(finish(process)) for process in (first, second)] == [expected.sum()] * 2
    (kept,) = (tmp_path / "cache").iterdir()
    assert np.array_equal(np.load(kept), expected)


@pytest.mark.parametrize("writer", ["savez", "savez_compressed"])
def test_phantoms_survive_a_kill_as_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    class Killed(BaseException):
        pass

    def half(path: Path, **arrays: object) -> NoReturn:
        path.write_bytes(b"PK half an archive")
        raise Killed

    def make() -> npt.NDArray[np.uint8]:
        if writer == "savez":
            return datasets.phantom_films(2, 48, 5, tmp_path).pixels
        return phantom_rows.phantom_films(2, 5, CONTRACT, tmp_path)[0][..., 0]

    with monkeypatch.context() as patch:
        patch.setattr(np, writer, half)
        with pytest.raises(Killed):
            make()
    assert not names(tmp_path)
    expected = np.stack([make_phantom(seed, 48).film for seed in (5, 6)])
    assert np.array_equal(make(), expected)
    assert np.array_equal(make(), expected)  # as it was kept
