"""The house: each folder imports only what stands to its right; heavy packages stay out of the light processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "foundation": set(),
    "adapters": {"foundation"},
    "serving": {"adapters", "foundation"},
    "training": {"adapters", "foundation"},
    "app": {"serving", "training", "adapters", "foundation"},
}
HEAVY = ("torch", "monai", "transformers", "open_clip", "timm", "peft", "accelerate", "torchvision")
LIGHT_MODULES = (
    "foundation.errors", "foundation.image", "foundation.preprocess", "foundation.readers", "foundation.phantom",
    "serving.api", "serving.client", "serving.cluster", "serving.gateway", "serving.messages", "app.cli", "app.ui",
)  # fmt: skip


def imported_houses(path: Path) -> Iterator[tuple[int, str]]:
    """(line, folder) of every import of one of our own folders, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import; name the package"
            names = [node.module or ""]
        for name in names:
            root = name.split(".")[0]
            if root in MAY_IMPORT:
                yield node.lineno, root


def imported_roots(path: Path) -> Iterator[str]:
    """The first word of every absolute import, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("house", MAY_IMPORT)
def test_imports_go_one_way(house: str) -> None:
    files = sorted((REPOSITORY / house).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {root}"
        for path in files
        for line, root in imported_houses(path)
        if root != house and root not in MAY_IMPORT[house]
    ]
    assert not wrong, "\n".join(wrong)


def test_only_one_file_imports_ray() -> None:
    wanted = {"ray"}
    files = [path for house in MAY_IMPORT for path in sorted((REPOSITORY / house).rglob("*.py"))]
    found = {str(path.relative_to(REPOSITORY)) for path in files if wanted & set(imported_roots(path))}
    assert found == {"serving/cluster.py"}


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.split() == []


def test_the_check_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def late():\n    from serving.client import Client\n    return Client\n")
    assert list(imported_houses(wrong)) == [(2, "serving")]


def test_only_the_fixed_folders_hold_code() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert packages <= {*MAY_IMPORT, "tests", "benchmarks"}
