"""AdapterLoader: reads adapter folders in a thread of its own, so that no batch waits for a disk.

    model's thread --want(stored)--> [reading thread: hashes, safetensors, checks of numbers] --on_read(digest)--> inbox
    model's thread --take(digest)--> ParsedAdapter, or the error that reading ended with

The thread computes with numpy alone: a second thread that runs parallel operations of torch slows the first for good.
What nobody takes is forgotten; reading it again is all that costs. An error stays until the folder is read again.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable

from adapters.files import ParsedAdapter, parse_adapter
from adapters.store import StoredAdapter
from foundation.errors import AdapterRefused, VesaliusError

KEPT = 32
OnRead = Callable[[str], None]


class AdapterLoader:
    """on_read is called from the reading thread, once for every folder read, with the digest that was wanted."""

    def __init__(self) -> None:
        self.on_read: OnRead = lambda digest: None
        self._wanted: queue.SimpleQueue[StoredAdapter] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._reading: set[str] = set()
        self._read: OrderedDict[str, ParsedAdapter | VesaliusError] = OrderedDict()
        self._thread: threading.Thread | None = None

    def has(self, digest: str) -> bool:
        """Whether it has been read, and nobody has taken it since."""
        with self._lock:
            return isinstance(self._read.get(digest), ParsedAdapter)

    def want(self, stored: StoredAdapter) -> None:
        """Begin to read a folder, unless that is under way."""
        with self._lock:
            if stored.digest in self._reading:
                return
            self._reading.add(stored.digest)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="adapter-loader", daemon=True)
            self._thread.start()
        self._wanted.put(stored)

    def take(self, digest: str) -> ParsedAdapter | None:
        """What was read; None if it was not, or if the folder held other files by then. Raises why it could not be read."""
        with self._lock:
            found = self._read.get(digest)
            if isinstance(found, VesaliusError):
                raise found
            self._read.pop(digest, None)
        return found if found is not None and found.digest == digest else None

    def _run(self) -> None:
        while True:
            stored = self._wanted.get()
            found = _parsed(stored)
            with self._lock:
                self._reading.discard(stored.digest)
                self._read[stored.digest] = found
                while len(self._read) > KEPT:
                    self._read.popitem(last=False)
            self.on_read(stored.digest)


def _parsed(stored: StoredAdapter) -> ParsedAdapter | VesaliusError:
    try:
        return parse_adapter(stored.folder)
    except VesaliusError as error:
        return error
    except Exception:  # the thread must live, and who waits must be told
        return AdapterRefused(f"The adapter {stored.name!r} cannot be read. Copy it into the store again.", param="model")
