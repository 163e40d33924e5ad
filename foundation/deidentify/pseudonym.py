"""Keyed pseudonyms: the same UID or patient number becomes the same other one under one key, and cannot be turned back."""

from __future__ import annotations

import hashlib
import hmac

from foundation.errors import InvalidRequest

MIN_KEY_BYTES = 16


class Pseudonyms:
    """key: kept secret and kept at all; with another key, films of one study no longer belong together."""

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise InvalidRequest(f"The key for pseudonyms needs at least {MIN_KEY_BYTES} bytes.", param="key")
        self._key = key

    def uid(self, uid: str) -> str:
        """A UID under 2.25 (PS3.5 B.2) of 122 keyed bits; version and variant are those of a random UUID."""
        number = int.from_bytes(self._keyed("uid", uid)[:16], "big")
        number = number & ~(0xF << 76) | 4 << 76
        number = number & ~(0x3 << 62) | 2 << 62
        return f"2.25.{number}"

    def patient(self, number: str) -> str:
        """What stands for a patient; empty for a film that names none."""
        return f"P{self._keyed('patient', number).hex()[:16].upper()}" if number else ""

    def _keyed(self, kind: str, text: str) -> bytes:
        return hmac.new(self._key, f"deidentify {kind}\0{text}".encode(), hashlib.sha256).digest()
