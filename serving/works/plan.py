"""From a request to its work. Adding an operation is adding a file beside this one and a line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foundation.errors import InvalidRequest
from serving.messages import Request
from serving.works.analyze import Analyze
from serving.works.anomaly import Anomaly
from serving.works.classify import Classify
from serving.works.embed import EmbedImage, EmbedText
from serving.works.fuse import Fuse
from serving.works.hot import Load, Unload
from serving.works.segment import Segment
from serving.works.work import Tools, Work, film_of
from serving.works.zero_shot import ZeroShot

THROUGH_AN_ADAPTER: Mapping[str, Callable[[Request, Tools, set[str]], Work]] = {
    "classify": Classify.of,
    "segment": Segment.of,
    "anomaly": Anomaly.of,
    "fuse": Fuse.of,
    "load": Load.of,
    "unload": Unload.of,
}


def plan(request: Request, tools: Tools, pinned: set[str]) -> Work:
    """The work of a request that does not generate. pinned: digests of adapters this batch uses, added to."""
    through_adapter = THROUGH_AN_ADAPTER.get(request.operation)
    if through_adapter is not None:
        return through_adapter(request, tools, pinned)
    if request.adapter is not None:
        raise InvalidRequest(f"The adapter {request.adapter!r} cannot do {request.operation!r}.", param="model")
    if request.operation == "embed_text":
        return EmbedText(request.texts, tools.backbone)
    if request.operation == "embed_image":
        return EmbedImage(film_of(request, tools))
    if request.operation == "zero_shot":
        return ZeroShot.of(request, tools)
    if request.operation == "analyze":
        return Analyze.of(request, tools, lambda single: plan(single, tools, pinned))
    raise InvalidRequest(f"The operation {request.operation!r} is not known here.", param="operation")
