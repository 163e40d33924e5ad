"""A film against the caller's own labels, through the base. The arithmetic stands in `serving/zero_shot.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.messages import Film, Request
from serving.works.work import Seen, Tools, Value, View, assessment, film_of
from serving.zero_shot import PromptSet, score


@dataclass(frozen=True, eq=False)
class ZeroShot:
    film: Film
    prompts: PromptSet
    scoring: str
    tools: Tools
    resident: None = None

    @classmethod
    def of(cls, request: Request, tools: Tools) -> ZeroShot:
        options: Mapping[str, Any] = request.options
        scoring = str(options.get("scoring") or "softmax")
        prompts = PromptSet.from_labels(
            list(options.get("labels") or []), list(options.get("templates") or []), options.get("negatives"), scoring
        )
        return cls(film_of(request, tools), prompts, scoring, tools)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(self.film.pixels),)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.prompts.texts

    def finish(self, seen: Seen) -> Value:
        verdict = self.tools.verdict(seen.features[0], self.film)
        value: Value = {"scores": [], "logits": [], "calibration": None, **assessment(verdict)}
        if verdict.assessed:
            backbone = self.tools.backbone
            embedding = seen.features[0].embedding[0].float()
            scale, bias = backbone.logit_scale, backbone.logit_bias
            value["scores"], value["logits"] = score(embedding, self.prompts, seen.texts, scale, bias, self.scoring)
        return value
