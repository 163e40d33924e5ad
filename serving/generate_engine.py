"""GenerateEngine: the chat route over any transformers model of images and text, through its own `generate`.

    Request --messages, the film as a picture--> processor's chat template --> generate, on a thread --> pieces --> Outcomes

One answer after the other: `generate` knows no rows that come and go. There is no gate, no findings and no heat map here, so
there is no evidence. Every other operation is refused. The thread is the only one that computes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from foundation.chat_folder import ChatFolder, open_chat_folder
from foundation.errors import DeadlineExceeded, InvalidRequest, VesaliusError
from foundation.sampling import StopMatcher
from serving.config import EngineConfig
from serving.device import take_device
from serving.engine_facts import EngineFacts
from serving.faults import fault
from serving.generation import TOO_LATE, HasNews, never
from serving.messages import Batch, Outcome, Request
from serving.transport import failure

_WAIT_S = 0.05
CHAT_ONLY = "This model can only chat. Serve an open_clip checkpoint for embeddings, zero-shot and adapters."


class GenerateEngine:
    """Implements what the engine loop asks of an engine (`engine_loop.Runs`)."""

    def __init__(self, opened: ChatFolder, config: EngineConfig) -> None:
        self.config = config
        self._opened = opened
        self._waiting: deque[Request] = deque()
        self._running: _Answer | None = None

    @classmethod
    def open(cls, config: EngineConfig) -> GenerateEngine:
        """Raises CheckpointError."""
        return cls(open_chat_folder(Path(config.checkpoint), take_device(config)), config)

    @property
    def facts(self) -> EngineFacts:
        folder = self._opened.folder
        return EngineFacts(
            name=self.config.base_name,
            fingerprint=self._opened.fingerprint,
            embed_dim=0,
            licence="",
            precision=str(self._opened.model.dtype).removeprefix("torch."),
            can_chat=True,
            created=int(folder.stat().st_mtime),
            contract=asdict(self._opened.contract),
            can_embed=False,
        )

    @property
    def generating(self) -> int:
        return len(self._waiting) + (self._running is not None)

    def check(self) -> None:
        """The canary: one token about nothing. Raises what goes wrong."""
        inputs = self._opened.processor.tokenizer("a", return_tensors="pt").to(self._opened.model.device)
        self._opened.model.generate(**inputs, max_new_tokens=1, do_sample=False)

    def run(self, batch: Batch) -> list[Outcome]:
        refused: list[Outcome] = []
        for request in batch.requests:
            if request.operation != "chat":
                refused.append(failure(request.id, InvalidRequest(CHAT_ONLY, param="model")))
            elif request.sampling.logprobs:
                wrong = InvalidRequest("This model's log-probabilities are not told. Leave 'logprobs' out.", param="logprobs")
                refused.append(failure(request.id, wrong))
            else:
                self._waiting.append(request)
        return refused

    def generate(self, has_news: HasNews = never) -> list[Outcome]:
        """What was written since the last call; waits a moment for it, news or not."""
        now = time.monotonic()
        late = [one for one in self._requests() if one.deadline is not None and one.deadline <= now]
        outcomes = [failure(one.id, DeadlineExceeded(TOO_LATE)) for one in late if self.cancel(one.id)]
        if self._running is None and self._waiting:
            self._running = _Answer(self._opened, self._waiting.popleft())
        if self._running is not None:
            said = self._running.said(_WAIT_S)
            if any(outcome.is_final for outcome in said):
                self._running = None
            outcomes += said
        return outcomes

    def cancel(self, request_id: int) -> bool:
        if self._running is not None and self._running.request.id == request_id:
            self._running.stop()
            self._running = None
            return True
        found = [one for one in self._waiting if one.id == request_id]
        for one in found:
            self._waiting.remove(one)
        return bool(found)

    def forget(self, tenant: str, study: str) -> None:
        """Nothing is kept of anyone."""

    def _requests(self) -> list[Request]:
        return [*([self._running.request] if self._running else []), *self._waiting]


class _Answer:
    """One `generate` on a thread of its own; ended by its length, the model, a stop string, or `stop`."""

    def __init__(self, opened: ChatFolder, request: Request) -> None:
        self.request = request
        self._opened = opened
        self._made: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True, name="generate")
        self._thread.start()

    def said(self, wait_s: float) -> list[Outcome]:
        found: list[Outcome] = []
        try:
            found.append(self._made.get(timeout=wait_s))
            while True:
                found.append(self._made.get_nowait())
        except queue.Empty:
            return found

    def stop(self) -> None:
        """Returns once the thread computes no more."""
        self._ends.set()
        self._thread.join()

    def _write(self) -> None:
        request = self.request
        try:
            self._made.put(Outcome(request.id, self._generate()))
        except VesaliusError as error:
            self._made.put(failure(request.id, error))
        except Exception as error:  # the caller must have an answer
            self._made.put(fault(request.id, error, request.trace))

    def _generate(self) -> Mapping[str, Any]:
        started, model, sampling = time.perf_counter(), self._opened.model, self.request.sampling
        inputs = self._inputs()
        count = int(inputs["input_ids"].shape[1])
        room = self._opened.context - count
        if room < 1:
            raise InvalidRequest(f"The question is {count} tokens long, where {self._opened.context} fit.", param="messages")
        limit = min(sampling.max_tokens, room)
        streamer = _Pieces(self._opened.processor.tokenizer, sampling.stop, self._piece, self._ends)
        torch.manual_seed(sampling.seed) if sampling.seed is not None else torch.seed()
        choosing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            choosing = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        made = model.generate(
            **inputs,
            **choosing,
            max_new_tokens=limit,
            num_beams=1,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_Ends(self._ends)]),
        )
        ids = made[0, count:].tolist()
        is_cut = len(ids) >= limit and not streamer.is_stopped and ids[-1] not in _end_ids(model)
        film = self.request.film
        return {
            "finish_reason": "length" if is_cut else "stop",
            "usage": {"prompt_tokens": count, "completion_tokens": len(ids)},
            "evidence": None,
            "compute_ms": 1000 * (time.perf_counter() - started),
            "provenance": {
                "model": self._opened.fingerprint,
                "adapter": None,
                "pixels": film.digest if film is not None else None,
                "preprocessing": str(self._opened.contract.version),
            },
        }

    def _piece(self, text: str) -> None:
        self._made.put(Outcome(self.request.id, {"delta": text}, is_final=False))

    def _inputs(self) -> Any:
        """The conversation through the model's own chat template, the film in the last question."""
        film, processor = self.request.film, self._opened.processor
        controls = set(processor.tokenizer.all_special_tokens) | {str(getattr(processor, "image_token", "") or "<image>")}
        messages: list[dict[str, Any]] = []
        for turn in self.request.turns:
            part = {"type": "text", "text": without_controls(turn.text, controls)}
            messages.append({"role": turn.role, "content": [part]})
        if film is not None:
            messages[-1]["content"].insert(0, {"type": "image", "image": Image.fromarray(film.pixels)})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        if film is not None and not any(key.startswith("pixel") for key in inputs):
            raise InvalidRequest("This model's processor did not take the film.", param="messages")
        return inputs.to(self._opened.model.device, dtype=self._opened.model.dtype)


class _Pieces(TextStreamer):
    """Text as it becomes certain, less the stop string and what comes after it."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], say: Any, ends: threading.Event) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._matcher, self._say, self._ends = StopMatcher(stops), say, ends
        self.is_stopped = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.is_stopped:
            return
        shown, self.is_stopped = self._matcher.push(text)
        if self.is_stopped:
            self._ends.set()
        elif stream_end:
            shown += self._matcher.flush()
        if shown:
            self._say(shown)


class _Ends(StoppingCriteria):
    def __init__(self, ends: threading.Event) -> None:
        self._ends = ends

    def __call__(self, input_ids: torch.Tensor, scores: Any, **unused: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._ends.is_set(), dtype=torch.bool, device=input_ids.device)


def without_controls(text: str, controls: set[str]) -> str:
    """A person's words never become a special token: those that look like one are broken by a space."""
    for control in sorted(filter(None, controls), key=len, reverse=True):
        text = text.replace(control, f"{control[0]} {control[1:]}")
    return text


def _end_ids(model: Any) -> set[int]:
    given = model.generation_config.eos_token_id
    return set(given) if isinstance(given, list) else {given}
