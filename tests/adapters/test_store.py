"""The store: roots in order, names that are safe, whole folders or nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import adapters.store
from adapters.card import CARD, WEIGHTS, check_name
from adapters.store import AdapterStore
from foundation.errors import AdapterNotFound, AdapterRefused, InvalidRequest


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "bundled", tmp_path / "user")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "Upper", "lora", "ora_", "r", "x" * 64, "a\n", "a b", "-x"])
def test_unsafe_names_are_refused(store: AdapterStore, name: str) -> None:
    with pytest.raises(InvalidRequest, match="adapter name"):
        check_name(name)
    with pytest.raises(InvalidRequest, match="adapter name"):
        store.get(name)


def test_add_list_get_verify_remove(store: AdapterStore, folder: Path) -> None:
    assert store.list() == ()
    added = store.add(folder)
    assert (added.name, added.card.labels, added.is_bundled) == ("chest-test", ("effusion", "mass"), False)
    assert added.folder == store.roots[-1] / "chest-test"
    other = store.add(folder, "another")
    assert [stored.name for stored in store.list()] == ["another", "chest-test"]
    assert store.verify("another").digest == other.digest == added.digest
    store.remove("another")
    assert [stored.name for stored in store.list()] == ["chest-test"]
    with pytest.raises(AdapterNotFound, match="known are: chest-test"):
        store.get("another")
    assert sorted(path.name for path in store.roots[-1].iterdir()) == ["chest-test"]  # nothing half done is left


def test_broken_folders_do_not_enter(store: AdapterStore, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(AdapterRefused, match="SHA-256"):
        store.add(folder)
    assert store.list() == ()


def test_links_do_not_enter(store: AdapterStore, folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterRefused):
        store.add(folder)


def test_the_first_root_wins_and_is_not_shadowed(store: AdapterStore, folder: Path, tmp_path: Path) -> None:
    AdapterStore(tmp_path / "bundled").add(folder)
    assert store.get("chest-test").folder.parent == tmp_path / "bundled"
    with pytest.raises(InvalidRequest, match="here already"):
        store.add(folder, replace=True)
    with pytest.raises(InvalidRequest, match="bundled"):
        store.remove("chest-test")


def test_replacing_changes_the_digest(store: AdapterStore, folder: Path) -> None:
    before = store.add(folder).digest
    text = (folder / CARD).read_text().replace('"description": ""', '"description": "second"')
    (folder / CARD).write_text(text)
    with pytest.raises(InvalidRequest, match="here already"):
        store.add(folder)
    after = store.add(folder, replace=True)
    assert after.digest != before
    assert after.card.description == "second"
    assert len(list(store.roots[-1].iterdir())) == 1


def test_the_bundled_library_is_read_only() -> None:
    with pytest.raises(InvalidRequest, match="bundled"):
        AdapterStore().remove("anything-at-all")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "card.json is not valid JSON"),
        ('{"format": 99}', "card.json is not of format 1"),
        ("\xff\xfe", "card.json is not UTF-8 text"),
        ('{"format": 1, "metrics": 5}', "card.json holds a value of the wrong kind"),
        ('{"format": 1, "name": "x"}', "card.json lacks a required field"),
    ],
)
def test_a_broken_card_is_told_and_hides_no_other(store: AdapterStore, folder: Path, text: str, reason: str) -> None:
    store.add(folder)
    store.add(folder, "another")
    assert store.refused() == ()
    (store.roots[-1] / "another" / CARD).write_bytes(text.encode("latin-1"))
    assert [stored.name for stored in store.list()] == ["chest-test"]
    (refused,) = store.refused()
    assert (refused.name, refused.folder) == ("another", store.roots[-1] / "another")
    assert reason in refused.reason
    with pytest.raises(AdapterRefused, match=reason):
        store.get("another")
    assert store.get("chest-test").card.labels == ("effusion", "mass")
    store.remove("another")  # the way to be rid of it
    assert store.refused() == ()


def test_listing_needs_no_torch() -> None:
    code = "import sys, adapters.store; adapters.store.AdapterStore().list(); assert 'torch' not in sys.modules"
    root = Path(adapters.store.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)
