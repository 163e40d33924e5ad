"""A decode process that does as its film says: hang, spin, be late, crash, or answer. Run by test_decode_pool.py."""

from __future__ import annotations

import os
import time

import numpy as np

from serving.messages import Film
from serving.spawn import parent_channel
from serving.transport import film_to_plain

channel = parent_channel()
channel.send({"kind": "hello"})
for message in channel:
    data = message["raw"]["data"]
    if data == b"hang":
        time.sleep(60)
    while data == b"spin":
        pass
    if data == b"late":
        time.sleep(1.5)
    if data == b"crash":
        os._exit(1)
    channel.send({"kind": "film", "film": film_to_plain(Film(np.zeros((2, 2, 3), np.uint8), digest=data.decode()))})
