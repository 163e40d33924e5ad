"""What the pages name is there: files, modules that are run, commands and their options, links."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from app.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md"))
    if path.name != "CHANGELOG.md"  # which names what was, too
)
OURS = ("foundation", "adapters", "serving", "training", "app", "benchmarks")
RUN = re.compile(r"python -m ([\w.]+\w)")
COMMAND = re.compile(r"vesalius ([a-z][a-z-]+)((?: [^`|;#\n]+)?)")
FILE = re.compile(r"(?<![\w/.<-])((?:[\w-]+/)*[\w-]+\.(?:py|md|toml|lock))(?![\w/])")
QUOTED = re.compile(r"`([^`\n]+)`|^ {4}(\S.*)$|^((?:vesalius|python) .*)$", re.MULTILINE)


FOLDERS = (*OURS, "tests", "docs", "examples")
FILES = [
    f"/{path.relative_to(ROOT).as_posix()}"
    for path in (*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*")))
    if path.is_file()
]


def quoted(page: str) -> list[str]:
    """What a page holds in backticks, and its lines of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [next(filter(None, found)) for found in QUOTED.findall(text)]


def missing_files(text: str) -> list[str]:
    """Names of files that end no path of this repository."""
    return [name for name in FILE.findall(text) if not any(path.endswith(f"/{name}") for path in FILES)]


def missing_modules(text: str) -> list[str]:
    """Modules of ours that a text tells to run and that cannot be."""
    named = [name for name in RUN.findall(text) if name.split(".")[0] in OURS]
    return [name for name in named if not is_runnable(name)]


def is_runnable(module: str) -> bool:
    place = ROOT.joinpath(*module.split("."))
    if (place / "__main__.py").is_file():
        return True
    file = place.with_suffix(".py")
    return file.is_file() and '__name__ == "__main__"' in file.read_text(encoding="utf-8")


def commands() -> dict[str, argparse.ArgumentParser]:
    return dict(next(action.choices for action in build_parser()._actions if action.dest == "command") or {})


def unknown_words(text: str) -> list[str]:
    """Commands of `vesalius`, and options of them, that there are not."""
    known, unknown = commands(), []
    for name, rest in COMMAND.findall(text):
        if name not in known:
            unknown.append(name)
            continue
        options = re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)
        unknown += [f"{name} {option}" for option in options if option not in known[name]._option_string_actions]
    return unknown


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    for text in quoted(page):
        assert missing_files(text) == []
        assert missing_modules(text) == []
        assert unknown_words(text) == []


def test_what_is_not_there_is_found() -> None:
    assert missing_files("see `serving/engine.py` and `serving/nowhere.py`") == ["serving/nowhere.py"]
    assert missing_modules("python -m training.nowhere; python -m benchmarks.load; python -m app.words") == [
        "training.nowhere",
        "app.words",
    ]
    assert unknown_words("vesalius serve --workers 2 --nowhere") == ["serve --nowhere"]
    assert unknown_words("vesalius nowhere") == ["nowhere"]


def test_every_module_that_the_source_tells_to_run_can_be() -> None:
    sources = [path[1:] for path in FILES if path.endswith(".py") and path.split("/")[1] in (*OURS, "docs")]
    wrong = {name: missing_modules((ROOT / name).read_text(encoding="utf-8")) for name in sources}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not ((ROOT / page).parent / target).exists()] == []
