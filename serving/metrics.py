"""What the server counts, for Prometheus. One registry an app, labels from fixed sets only.

No label ever holds a caller's text: routes are templates ("/v1/models/{model_id}"), codes come from the
error table, operations from `messages.Operation`. Where there are several fronts, each keeps its counts in files of a folder
that the parent names in the environment (prometheus_client's multiprocess mode), and any of them tells the sum; what a front
that was lost had counted remains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serving.gateway import Readiness

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._followed: dict[tuple[Counter, str], float] = {}
        self.requests = self._counter("requests", "HTTP requests answered", "route", "method", "status")
        self.request_seconds = self._histogram("request_seconds", "From headers to the last byte", "route")
        self.in_flight = self._gauge("requests_in_flight", "HTTP requests being answered", "livesum")
        self.item_errors = self._counter("item_errors", "Films or questions that failed, by error code", "code")
        self.decode_seconds = self._histogram("decode_seconds", "Reading one film")
        self.compute_seconds = self._histogram("compute_seconds", "The batch that held the request", "operation")
        self.queue_seconds = self._histogram("queue_seconds", "Waiting for the device", "operation")
        self.first_token_seconds = self._histogram("first_token_seconds", "From question to first piece of an answer")
        self.completion_tokens = self._counter("completion_tokens", "Tokens generated")
        self.withdrawn_rows = self._counter("withdrawn_rows", "Rows of callers who had left, by where they were", "where")
        self.forwarded_rows = self._counter("forwarded_rows", "Rows through the trunk, by who still waited", "whom")
        self.ready = self._gauge("ready", "1 when the engine answers")
        self.queue_length = self._gauge("queue_length", "Requests waiting for the device")
        self.last_forward_age = self._gauge("last_forward_age_seconds", "Since the engine last finished a batch")

    def render(self, readiness: Readiness) -> bytes:
        """Everything in Prometheus's text format, with the gauges taken from `readiness`."""
        self.follow(readiness)
        self.ready.set(1 if readiness.ready else 0)
        self.queue_length.set(readiness.queue_length)
        age = readiness.last_forward_age_s
        self.last_forward_age.set(float("nan") if age is None else age)
        return generate_latest(_of_all_fronts() if FOLDER_VARIABLE in os.environ else self.registry)

    def follow(self, readiness: Readiness) -> None:
        """Take in what was counted elsewhere."""
        self._follow(self.withdrawn_rows, readiness.withdrawn)
        self._follow(self.forwarded_rows, readiness.forwarded)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vesalius_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: Literal["livesum", "livemostrecent"] = "livemostrecent") -> Gauge:
        """mode: how the gauges of several fronts become one; the last one set, by whoever renders, or their sum."""
        return Gauge(f"vesalius_{name}", text, registry=self.registry, multiprocess_mode=mode)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"vesalius_{name}", text, labels, registry=self.registry, buckets=_SECONDS)

    def _follow(self, counter: Counter, values: Mapping[str, float]) -> None:
        """Raise a counter of one label to what was counted elsewhere."""
        for label, value in values.items():
            more = value - self._followed.get((counter, label), 0.0)
            self._followed[counter, label] = value
            counter.labels(label).inc(max(0.0, more))


def _of_all_fronts() -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
