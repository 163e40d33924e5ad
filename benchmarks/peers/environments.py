"""An environment of its own for each peer, from pinned requirements, in a folder that git ignores.

python -m benchmarks.peers --install             all that are missing
python -m benchmarks.peers --lock NAME           resolve NAME.txt anew
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.load.server import HOUSE
from benchmarks.peers.catalogue import NEEDS

FOLDER = HOUSE / "runs" / "peers"
_INSTALL_LIMIT_S = 1800.0
_STAMP = ".installed"


class NotInstalledError(Exception):
    """Why a peer's environment cannot be made: a sentence."""


def requirements(name: str) -> Path:
    return Path(__file__).parent / f"{name}.txt"


def pinned_version(name: str, package: str) -> str:
    """The version of `package` in NAME.txt, "" where it names none."""
    lines = requirements(name).read_text(encoding="utf-8").splitlines() if name else []
    return next((line.partition("==")[2].split(" ")[0] for line in lines if line.startswith(f"{package}==")), "")


def python_of(name: str, folder: Path = FOLDER) -> Path:
    """The interpreter of a peer's environment, which is made or brought up to date first. Raises NotInstalledError."""
    home = folder / name
    python, stamp = home / "bin" / "python", home / _STAMP
    wanted = requirements(name).read_text(encoding="utf-8")
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _uv("venv", "--quiet", "--allow-existing", "--python", sys.executable, str(home))
    _uv("pip", "sync", "--quiet", "--compile-bytecode", "--python", str(python), str(requirements(name)))
    stamp.write_text(wanted, encoding="utf-8")
    return python


def lock(name: str) -> None:
    """Write NAME.txt anew from what the catalogue says it needs."""
    options = ["--quiet", "--python-version", "3.11", "--no-emit-index-url", "--no-emit-find-links", "--no-header"]
    _uv("pip", "compile", *options, "--no-annotate", "-", "-o", str(requirements(name)), given=NEEDS[name].lines)


def _uv(*arguments: str, given: str | None = None) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise NotInstalledError("uv is not installed here; `make install` brings it.")
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    try:
        done = subprocess.run(
            [uv, *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=_INSTALL_LIMIT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"`uv {arguments[0]}` took over {_INSTALL_LIMIT_S:.0f} s.") from None
    if done.returncode:
        raise NotInstalledError(f"`uv {' '.join(arguments[:2])}` failed: {done.stderr.strip()[-300:]}")
