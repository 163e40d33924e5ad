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
ROOMS_OF_TRAINING = (
    "",
    "manifests",
    "measuring",
    "trust",
    "pretraining",
    "finetuning",
    "evaluating",
)  # "": the files beside them
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


def rooms_entered(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of a room of `training`, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            house, room, *_ = [*module.split("."), ""]
            if house == "training":
                yield node.lineno, room if room in ROOMS_OF_TRAINING else ""


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


def test_the_rooms_of_training_import_only_what_stands_before_them() -> None:
    home = REPOSITORY / "training"
    assert {path.parent.name for path in home.glob("*/__init__.py")} == {*ROOMS_OF_TRAINING} - {""}
    wrong = []
    for path in sorted(home.rglob("*.py")):
        own = ROOMS_OF_TRAINING.index(path.relative_to(home).parts[0] if path.parent != home else "")
        wrong += [
            f"{path.relative_to(home)}:{line}: {room}"
            for line, room in rooms_entered(path)
            if ROOMS_OF_TRAINING.index(room) > own
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
    wrong.write_text("from training import loop, trust\nimport training.manifests.row\n")
    assert list(rooms_entered(wrong)) == [(1, ""), (1, "trust"), (2, "manifests")]


def test_only_the_fixed_folders_hold_code() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert packages <= {*MAY_IMPORT, "tests", "benchmarks"}
