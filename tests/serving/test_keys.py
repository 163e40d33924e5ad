"""Keys on disk and in a running server: hashed, scoped, revoked at once, and never fewer locks than before."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from foundation.errors import InvalidRequest, Overloaded
from serving.keys import ApiKey, KeyFile, KeyRing, hash_key, new_key
from serving.rates import RateLimiter


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "home" / "keys.json")


def test_the_file_holds_hashes_and_only_its_owner_may_read_it(file: KeyFile) -> None:
    key, secret = file.add("ward-3", ("infer",))
    text = file.path.read_text()
    assert secret not in text
    assert secret.removeprefix("vsl-") not in text
    assert hash_key(secret) in text
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.read() == (key,)
    assert hash_key(secret) not in repr(key)


def test_keys_are_long_and_all_different() -> None:
    made = {new_key() for _ in range(1000)}
    assert len(made) == 1000
    assert min(map(len, made)) >= 43


def test_a_ring_finds_a_key_until_it_is_revoked_without_being_told(file: KeyFile) -> None:
    key, secret = file.add("ward-3", ("infer",))
    ring = KeyRing(file)
    assert ring.find(secret) == key
    assert ring.find(secret + "x") is ring.find("") is None
    other, other_secret = file.add("ward-4", ("admin",))
    assert ring.find(other_secret) == other
    file.revoke("ward-3")
    assert ring.find(secret) is None
    assert ring.find(other_secret) == other
    file.revoke(other.id)
    assert ring.find(other_secret) is None
    assert ring.active == 0
    assert not ring.is_open


def test_a_ring_is_open_only_while_no_key_was_ever_made(file: KeyFile) -> None:
    ring = KeyRing(file, [ApiKey.given(new_key(), "page", ("infer",))])
    assert ring.is_open
    _, secret = file.add("first", ("infer",))
    assert not ring.is_open
    file.path.unlink()
    assert not ring.is_open
    assert ring.find(secret) is None


@pytest.mark.parametrize("damage", ["{", '{"keys": [{"id": "x"}]}', '{"keys": 3}', "[]"])
def test_a_damaged_file_lets_nobody_in_and_stops_a_start(file: KeyFile, damage: str) -> None:
    _, secret = file.add("first", ("infer",))
    ring = KeyRing(file)
    file.path.write_text(damage)
    assert ring.find(secret) is None
    assert not ring.is_open
    with pytest.raises(InvalidRequest, match="damaged"):
        KeyRing(file)


def test_a_file_others_may_write_is_refused(file: KeyFile) -> None:
    file.add("first", ("infer",))
    file.path.chmod(0o666)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        KeyRing(file)


@pytest.mark.parametrize(
    ("name", "scopes", "per_minute"),
    [
        ("", ("infer",), 1),
        ("a b", ("infer",), 1),
        ("../x", ("infer",), 1),
        ("a", (), 1),
        ("a", ("root",), 1),
        ("a", ("infer",), -1),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(file: KeyFile, name: str, scopes: tuple[str, ...], per_minute: int) -> None:
    with pytest.raises(InvalidRequest):
        file.add(name, scopes, per_minute)  # type: ignore[arg-type]
    assert not file.path.exists()


def test_names_are_unique_among_active_keys_and_revoking_needs_one(file: KeyFile) -> None:
    first, _ = file.add("ward-3", ("infer",))
    with pytest.raises(InvalidRequest, match="Revoke it first"):
        file.add("ward-3", ("infer",))
    file.revoke("ward-3")
    second, _ = file.add("ward-3", ("infer",))
    assert first.id != second.id
    assert [key.revoked is None for key in file.read()] == [False, True]
    with pytest.raises(InvalidRequest, match="active are: ward-3"):
        file.revoke("ward-4")


def test_writers_at_the_same_time_lose_no_key(file: KeyFile) -> None:
    threads = [threading.Thread(target=file.add, args=(f"key-{number}", ("infer",))) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in file.read()) == sorted(f"key-{number}" for number in range(16))
    assert sorted(os.listdir(file.path.parent)) == ["keys.json", "keys.lock"]
    assert json.loads(file.path.read_text())["version"] == 1


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_retry_after_is_the_very_moment_a_place_is_free() -> None:
    clock = FakeClock()
    rates = RateLimiter(clock)
    for _ in range(15):  # a quarter of sixty at once
        rates.admit("a", 60)
    with pytest.raises(Overloaded, match="60 requests a minute") as refused:
        rates.admit("a", 60)
    rates.admit("b", 60)  # another key is not slowed
    rates.admit("c", 0)
    wait_s = refused.value.retry_after_s
    clock.now += wait_s - 0.01
    with pytest.raises(Overloaded):
        rates.admit("a", 60)
    clock.now += 0.01
    rates.admit("a", 60)


def test_over_a_long_time_the_rate_is_the_one_agreed() -> None:
    clock = FakeClock()
    rates, admitted = RateLimiter(clock), 0
    for _ in range(6000):  # ten minutes, ten attempts a second
        clock.now += 0.1
        try:
            rates.admit("a", 60)
        except Overloaded:
            continue
        admitted += 1
    assert 600 <= admitted <= 600 + 15
