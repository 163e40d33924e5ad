"""The chat model of a checkpoint for evaluation: asked in this process, through the very engine that serves."""

from __future__ import annotations

from itertools import count

from adapters.store import AdapterStore
from foundation.checkpoint import Checkpoint
from foundation.errors import InvalidRequest
from foundation.prompt import FindingState
from serving.engine import Engine
from serving.evidence import Finding
from serving.messages import ChatTurn, Film, Request
from training.evaluating.chat_check import Answer
from training.measuring.scoring import Film as Pixels

NOT_ASSESSED = "Not assessed: this looks like {}."


class EngineChat:
    """Answers one question about one film at a time, greedily. A film outside the gate is answered with a refusal."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = count()

    def answer(self, film: Pixels, question: str) -> Answer:
        """film (S, S, 3) uint8, as the model sees it."""
        request = Request(next(self._ids), "chat", film=Film(film, digest="evaluation"), turns=(ChatTurn("user", question),))
        text, findings, stated = "", {}, tuple[FindingState, ...]()
        for outcome in self.engine.answer(request):
            if outcome.is_error:
                raise InvalidRequest(outcome.error_message)
            value = outcome.value or {}
            text += value.get("delta", "")
            evidence = value.get("evidence")
            if evidence and not evidence["assessed"]:
                text = NOT_ASSESSED.format(evidence["looks_like"])
            elif evidence:
                findings = {one["label"]: one["probability"] for one in evidence["findings"]}
                stated = tuple(Finding(**one).state() for one in evidence["findings"])
        return Answer(text, findings, stated)


def open_chat(checkpoint: Checkpoint) -> EngineChat:
    """Raises InvalidRequest where the checkpoint has no decoder."""
    if not checkpoint.has_decoder:
        raise InvalidRequest("This checkpoint has no decoder: give one that can chat.", param="checkpoint")
    return EngineChat(Engine(checkpoint, AdapterStore.default()))
