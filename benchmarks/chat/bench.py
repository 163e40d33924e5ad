"""Bench: one decoder, as transformers runs it and as the lane does; made-up films and questions about them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.bank import AdapterBank
from foundation.checkpoint import open_checkpoint
from foundation.decoder import Decoder, DecoderShape
from foundation.lexicon import FINDINGS
from foundation.prompt import FindingState, Turn
from foundation.text_writer import TextWriter
from serving.chat_residency import ChatResident
from serving.chat_work import Opening, Picture
from serving.evidence import Evidence
from serving.generation import ChatLane
from serving.messages import Film, Outcome, Request, Sampling

ASKERS = 16
QUESTIONS = (
    "Is there a pleural effusion?",
    "Where is the effusion?",
    "Describe the film.",
    "Is the heart enlarged?",
    "What do you see in the left lung?",
    "Is it normal?",
)
LIMITS = (8, 16, 32, 64, 96, 128)
SHORT = tuple(limit // 2 for limit in LIMITS)  # where no answer ends by itself: nearly as long as the bundled decoder's are
Clock = Callable[[], float]


@dataclass(frozen=True)
class Question:
    turns: tuple[Turn, ...]
    picture: Picture
    limit: int
    film: str


class Bench:
    """decoder: the lane's. patches: image tokens of a film. limits: an answer's, one of them drawn for each question."""

    def __init__(self, decoder: Decoder, patches: int, clock: Clock, limits: Sequence[int] = LIMITS) -> None:
        self.decoder = decoder
        self.patches = patches
        self.clock = clock
        self._limits = limits
        self._theirs = copy.deepcopy(decoder)  # NOTE: the lane lays the weights out anew, which would speed transformers up

    def question(self, number: int, film: int | None = None) -> Question:
        """Another film each, unless one is named."""
        draw = random.Random(number)
        seed = number if film is None else film
        tokens = torch.randn(self.patches, self.decoder.image_width, generator=torch.Generator().manual_seed(seed))
        shade = random.Random(seed)
        findings = tuple(FindingState(name, (p := shade.random() ** 3), p > 0.4) for name in FINDINGS[:13])
        turns = (Turn("user", draw.choice(QUESTIONS)),)
        return Question(turns, Picture(tokens, findings), draw.choice(self._limits), f"{seed:064x}")

    def ids(self, one: Question) -> list[int]:
        return self.decoder.prompt_ids(one.turns, one.picture.findings, self.patches)

    # transformers

    @torch.inference_mode()
    def generate(self, asked: Sequence[Question], on_first: Callable[[], None] | None = None) -> list[list[int]]:
        """`generate` over one batch, padded on the left, until the longest answer is written."""
        decoder = self._theirs
        embedded = [decoder.embed(self.ids(one), one.picture.tokens)[0] for one in asked]
        longest = max(map(len, embedded))
        padded = torch.stack([torch.nn.functional.pad(one, (0, 0, longest - len(one), 0)) for one in embedded])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in embedded])
        made = decoder.model.generate(
            inputs_embeds=padded,
            attention_mask=mask,
            max_new_tokens=max(one.limit for one in asked),
            do_sample=False,
            eos_token_id=decoder.end_id,
            pad_token_id=decoder.tokenizer.special_ids["[PAD]"],
            suppress_tokens=list(decoder.tokenizer.silent_ids),
            logits_processor=[_Watch(on_first)] if on_first is not None else [],
        )
        return [self._useful(row.tolist(), one) for row, one in zip(made, asked, strict=True)]

    def _useful(self, ids: list[int], one: Question) -> list[int]:
        end = ids.index(self.decoder.end_id) + 1 if self.decoder.end_id in ids else len(ids)
        return ids[: min(end, one.limit)]

    def text(self, ids: Sequence[int]) -> str:
        writer = TextWriter(self.decoder.tokenizer, Sampling(max_tokens=len(ids)), 0, room=len(ids))
        return "".join(map(writer.accept, ids))

    # The lane

    def lane(self, cached_bytes: int = 0, bank: AdapterBank | None = None) -> ChatLane:
        return ChatLane(self.decoder, 4, bank, chats=ASKERS, cached_bytes=cached_bytes)

    def ask(self, lane: ChatLane, number: int, one: Question, slot: int = 0) -> None:
        """Without reliance, which `generate` does not offer."""
        film = Film(np.zeros(0, np.uint8), one.film)
        request = Request(number, "chat", film=film, sampling=Sampling(max_tokens=one.limit))
        adapter = ChatResident(f"adapter{slot}", f"{slot:064x}", slot) if slot else None
        lane.start(request, Opening(one.turns, one.picture, Evidence(True), adapter=adapter), dict)


class _Watch:
    """A logits processor that changes nothing and calls once, when the first tokens are there."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first: Callable[[], None] | None = on_first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._on_first is not None:
            self._on_first()
            self._on_first = None
        return scores


def fault(number: int, error: Exception, trace: str) -> Outcome:
    raise error


def bundled(clock: Clock, dtype: torch.dtype) -> Bench:
    decoder = Decoder.load(open_checkpoint("bundled").folder)
    decoder.compute_in(dtype)
    return Bench(decoder, 16, clock)


def random_25m(clock: Clock, dtype: torch.dtype) -> Bench:
    """A Llama of 25 M random weights in the layout of the bundled one, its film 100 patches."""
    file = open_checkpoint("bundled").folder / "decoder" / "tokenizer.json"
    settings: dict[str, Any] = json.loads(file.read_text())
    vocabulary = max([*settings["model"]["vocab"].values(), *(one["id"] for one in settings.get("added_tokens", []))]) + 1
    torch.manual_seed(0)
    shape = DecoderShape(384, vocabulary, width=384, layers=10, heads=6, key_value_heads=2, mlp_width=1536, context=1024)
    decoder = Decoder.create(shape, file)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, 0.0, 0.04)
    decoder.compute_in(dtype)
    return Bench(decoder, 100, clock, SHORT)
