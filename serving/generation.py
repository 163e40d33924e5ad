"""The chat lane: many answers written in one batch, and new questions read beside them.

    waiting --a staging row, with what is kept of the film--> fed --moves to row n--> writing --> scored --> over

    rows of the cache   0 1 2 ... n-1 | free ... | staging: prompts being read, answers being scored
                        writing: a token each a step, as one batch without a gap

A turn is a few steps. Each step adds a token to every chat that writes and, up to `prefill_tokens` a turn, reads on in
prompts, and after those scores answers against the blank and the shuffled film (`evidence.py`), both at once; a turn
ends when there are somebody's first words to tell. A chat that fails ends alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foundation.errors import DeadlineExceeded, VesaliusError
from serving.chat import Chat, Feed, Finish, Prompt
from serving.chat_work import Opening
from serving.messages import Outcome, Request
from serving.prefix_cache import PrefixCache
from serving.slots import SlotDecoder, Span
from serving.token_choice import Chooser, Chosen
from serving.transport import failure

if TYPE_CHECKING:
    from adapters.bank import AdapterBank
    from foundation.decoder import Decoder

OnFault = Callable[[int, Exception, str], Outcome]
HasNews = Callable[[], bool]
STAGING_ROWS = 8
WITHOUT = 2  # films an answer is scored against: blank and shuffled
TOO_LATE = "The answer was not finished in time. Ask for fewer max_tokens, or try again later."


def never() -> bool:
    return False


class ChatLane:
    """The chats under way. `finish` adds provenance and checks a value before it becomes an Outcome.

    chats: how many write at the same time; more than that wait. bank: of the decoder's adapters.
    """

    def __init__(
        self,
        decoder: Decoder | None,
        tokens_per_turn: int,
        bank: AdapterBank | None = None,
        *,
        chats: int = 16,
        prefill_tokens: int = 256,
        cached_bytes: int = 0,
    ) -> None:
        self._decoder = decoder
        self._tokens_per_turn = tokens_per_turn
        self._prefill_tokens = prefill_tokens
        self._places = chats
        self._prefixes = PrefixCache(cached_bytes)
        self._chats: dict[int, Chat] = {}
        self._waiting: deque[Chat] = deque()
        self._feeds: list[Feed] = []
        self._writing: list[Chat] = []  # a chat's place in it is its row in the cache
        self._to_score: deque[Chat] = deque()
        self._staging = list(range(chats, chats + STAGING_ROWS))
        self.read_tokens = 0  # prompt tokens run through the decoder so far, those of scoring too
        if decoder is not None:
            self._model = SlotDecoder(decoder.model, chats + STAGING_ROWS, bank.rows if bank is not None else None)
            tokenizer = decoder.tokenizer
            self._chooser = Chooser(tokenizer.silent_ids, decoder.end_id, tokenizer.tokens)
            self._user_id = tokenizer.special_ids["<user>"]

    def __len__(self) -> int:
        return len(self._chats)

    @property
    def adapters(self) -> frozenset[str]:
        """Digests of the adapters that chats under way are written through; their slots must stay as they are."""
        return frozenset(chat.opening.adapter.digest for chat in self._chats.values() if chat.opening.adapter is not None)

    def start(self, request: Request, opening: Opening, finish: Finish) -> None:
        assert self._decoder is not None
        chat = Chat(request, opening, finish, stores=request.stores and self._prefixes.capacity_bytes > 0)
        self._chats[request.id] = chat
        self._waiting.append(chat)

    def cancel(self, request_id: int) -> bool:
        chat = self._chats.get(request_id)
        if chat is not None:
            self._release(chat)
        return chat is not None

    def forget(self, tenant: str, study: str = "") -> None:
        """Drop what is kept of a film, and keep nothing of it that is still being spoken about."""
        self._prefixes.forget(tenant, study)
        for chat in self._chats.values():
            film = chat.request.film
            if chat.request.tenant == tenant and (not study or (film is not None and film.digest == study)):
                chat.stores = False

    @torch.inference_mode()
    def turn(self, now: float, on_fault: OnFault, has_news: HasNews = never) -> list[Outcome]:
        """Every chat goes on by a few tokens: what became certain, and the end of those that are over.

        has_news: whether somebody asks for something else; then the turn ends early.
        """
        outcomes = [self._too_late(chat) for chat in list(self._chats.values()) if _is_late(chat, now)]
        budget = self._prefill_tokens
        for _ in range(self._tokens_per_turn):
            outcomes += self._admit(on_fault)
            pieces = list(self._pieces(budget))
            if not pieces and not self._writing:
                break
            budget -= sum(length for _, length in pieces)
            outcomes += self._step(pieces, on_fault)
            if has_news() or any(chat.has_first_words for chat in self._chats.values()):
                break
        for chat in list(self._chats.values()):
            outcomes += self._said(chat, on_fault)
        return outcomes

    # Who is read, and how much of it

    def _admit(self, on_fault: OnFault) -> list[Outcome]:
        """Give staging rows to answers that are to be scored, two each, and then to new questions."""
        outcomes: list[Outcome] = []
        while self._to_score and len(self._staging) >= WITHOUT:
            chat = self._to_score.popleft()
            try:
                self._weigh(chat)
            except Exception as error:
                outcomes.append(self._failed(chat, error, on_fault))
        while self._waiting and len(self._staging) > WITHOUT and self._reading + len(self._writing) < self._places:
            chat = self._waiting.popleft()
            try:
                self._begin(chat)
            except Exception as error:
                outcomes.append(self._failed(chat, error, on_fault))
        return outcomes

    @property
    def _reading(self) -> int:
        return sum(not feed.answer_from for feed in self._feeds)

    def _begin(self, chat: Chat) -> None:
        assert self._decoder is not None
        if chat.is_refused:
            chat.refuse(self._decoder)
            return
        chat.begin(self._decoder)
        self._feeds.append(self._feed(chat, chat.prompt))

    def _weigh(self, chat: Chat) -> None:
        """Read the question and its answer again, about the film taken away."""
        assert self._decoder is not None
        assert chat.writer is not None
        begun = time.perf_counter()
        prompts = chat.without(self._decoder)
        assert len(prompts) <= WITHOUT
        chat.spent_s += time.perf_counter() - begun
        chat.scoring = len(prompts)
        if not prompts:
            chat.end()
        for prompt in prompts:
            self._feeds.append(self._feed(chat, prompt, chat.writer.token_ids))

    def _feed(self, chat: Chat, prompt: Prompt, answer: Sequence[int] = ()) -> Feed:
        """The prompt, and behind it the answer to be scored, from where what is kept of the film ends."""
        assert self._decoder is not None
        ids = (*prompt.ids, *answer)
        kept = self._prefixes.longest(prompt.key, prompt.ids[:-1]) if prompt.key is not None else None
        begun = kept.shape[3] if kept is not None else 0
        end = len(ids) - bool(answer)  # nothing is told by the last token of an answer
        embedded = self._decoder.embed(ids[begun:end], None if begun else prompt.patch_tokens)[0]
        row = self._staging.pop(0)
        if kept is not None:
            self._model.cache.write(row, kept)
        return Feed(chat, prompt, row, ids, begun, embedded, len(prompt.ids) if answer else 0)

    def _pieces(self, budget: int) -> Iterator[tuple[Feed, int]]:
        """Questions in their order, then answers to be scored, until the budget is spent."""
        for feed in sorted(self._feeds, key=lambda one: one.answer_from > 0):
            length = min(budget, feed.left)
            if length > 0:
                budget -= length
                yield feed, length

    # One forward

    def _step(self, pieces: Sequence[tuple[Feed, int]], on_fault: OnFault) -> list[Outcome]:
        begun, writing = time.perf_counter(), list(self._writing)
        pieces = sorted(pieces, key=lambda piece: piece[1] > 1)  # `SlotDecoder.run` wants single tokens first
        spans = [Span(row, chat.length, 1, chat.slot) for row, chat in enumerate(writing)]
        spans += [Span(feed.row, feed.fed, length, feed.chat.slot, feed.wants(length)) for feed, length in pieces]
        newest = [chat.writer.token_ids[-1] for chat in writing if chat.writer is not None]
        embedded = torch.cat([self._model.embed(newest), *(feed.piece(length) for feed, length in pieces)])
        hidden, broken = self._run(spans, embedded)
        chats = [*writing, *(feed.chat for feed, _ in pieces)]
        for at, chat in enumerate(writing):
            if at not in broken:
                chat.length += 1  # NOTE: before any row is given up, since the last that writes moves there with its `length`
        outcomes = [
            self._failed(chat, broken[at], on_fault) for at, chat in enumerate(chats) if at in broken and self._has(chat)
        ]
        speaking = [(chat, at) for at, chat in enumerate(writing) if self._has(chat)]  # where in `hidden` the next token stands
        place = len(writing)
        for (feed, length), wanted in zip(pieces, [span.wants for span in spans[len(writing) :]], strict=True):
            if self._has(feed.chat):
                self.read_tokens += length
                self._score(feed, length, hidden[place : place + wanted])
                feed.fed += length
                if not feed.left and not feed.answer_from:
                    self._move_in(feed)
                    speaking.append((feed.chat, place + wanted - 1))
            place += wanted
        if speaking:
            outcomes += self._speak([chat for chat, _ in speaking], hidden[[at for _, at in speaking]], on_fault)
        self._close_scored([feed for feed, _ in pieces if not feed.left and feed.answer_from and self._has(feed.chat)])
        spent_s = time.perf_counter() - begun
        for chat in {id(chat): chat for chat in chats}.values():
            chat.spent_s += spent_s
        return outcomes

    def _run(self, spans: Sequence[Span], embedded: Tensor) -> tuple[Tensor, dict[int, Exception]]:
        """All spans at once; where that fails each by itself, so that only those that are at fault fail."""
        try:
            return self._model.run(spans, embedded), {}
        except Exception as error:
            if len(spans) == 1:
                return torch.zeros_like(embedded[: spans[0].wants]), {0: error}
        broken: dict[int, Exception] = {}
        parts = []
        for at, (span, part) in enumerate(zip(spans, embedded.split([span.length for span in spans]), strict=True)):
            hidden, failed = self._run([span], part)
            parts.append(hidden)
            if failed:
                broken[at] = failed[0]
        return torch.cat(parts), broken

    def _speak(self, chats: Sequence[Chat], hidden: Tensor, on_fault: OnFault) -> list[Outcome]:
        asks = [(chat.request.sampling, chat.writer) for chat in chats if chat.writer is not None]
        outcomes: list[Outcome] = []
        for chat, chosen in zip(chats, self._chooser.choose(self._model.logits(hidden), asks), strict=True):
            try:
                self._write(chat, chosen)
            except Exception as error:
                outcomes.append(self._failed(chat, error, on_fault))
        return outcomes

    def _write(self, chat: Chat, chosen: Chosen | Exception) -> None:
        assert chat.writer is not None
        if isinstance(chosen, Exception):
            raise chosen
        chat.accept(chosen.token)
        chat.told += chosen.told
        if chosen.report is not None:
            chat.reports.append(chosen.report)
        if chat.writer.finish_reason:
            row = self._writing.index(chat)
            self._keep(chat.prompt, chat, row, chat.ids[: chat.length])
            self._move_out(row)
            if chat.opening.without is not None:
                self._to_score.append(chat)
            else:
                chat.end()

    # Rows

    def _move_in(self, feed: Feed) -> None:
        """A prompt is read: its row becomes the next of those that write."""
        chat, cache = feed.chat, self._model.cache
        chat.length = len(feed.ids)
        self._keep(chat.prompt, chat, feed.row, feed.ids)
        cache.move(feed.row, len(self._writing), chat.length)
        self._writing.append(chat)
        self._close(feed)

    def _move_out(self, row: int) -> None:
        """The last of those that write takes the row that became free."""
        last = self._writing.pop()
        if row < len(self._writing):
            self._model.cache.move(len(self._writing), row, last.length)
            self._writing[row] = last

    def _close(self, feed: Feed) -> None:
        self._feeds.remove(feed)
        self._staging.append(feed.row)
        self._staging.sort()

    def _keep(self, prompt: Prompt, chat: Chat, row: int, ids: Sequence[int]) -> None:
        if chat.stores and prompt.key is not None:
            self._prefixes.put(prompt.key, ids, self._model.cache.read(row, len(ids)))

    # Reliance

    def _score(self, feed: Feed, length: int, hidden: Tensor) -> None:
        """Add the log-probabilities of the answer's tokens told by this piece."""
        places = feed.scored(length)
        if not places:
            return
        logits = self._model.logits(hidden[-len(places) :])
        answer = torch.tensor([[feed.ids[place + 1]] for place in places], device=logits.device)
        feed.log_probability += float((logits.gather(1, answer)[:, 0] - logits.logsumexp(1)).sum())

    def _close_scored(self, feeds: Sequence[Feed]) -> None:
        for feed in feeds:
            self._keep(feed.prompt, feed.chat, feed.row, feed.ids[: feed.ids.index(self._user_id)])
            feed.chat.scores.append(feed.log_probability)
            self._close(feed)
            feed.chat.scoring -= 1
            if not feed.chat.scoring:
                feed.chat.end()

    # What is told

    def _said(self, chat: Chat, on_fault: OnFault) -> list[Outcome]:
        number, made = chat.request.id, []
        if chat.text or chat.reports:
            value: dict[str, Any] = {"delta": chat.text}
            if chat.reports:
                value["logprobs"] = chat.reports
            made.append(Outcome(number, value, is_final=False))
            chat.is_heard = chat.is_heard or bool(chat.text)
            chat.text, chat.reports = "", []
        if chat.last is None:
            return made
        try:
            return [*made, Outcome(number, chat.finish(chat.last))]
        except Exception as error:
            return [*made, self._failed(chat, error, on_fault)]
        finally:
            self._release(chat)

    def _failed(self, chat: Chat, error: Exception, on_fault: OnFault) -> Outcome:
        """The caller must have an answer, and the other chats go on."""
        self._release(chat, is_broken=not isinstance(error, VesaliusError))
        if isinstance(error, VesaliusError):
            return failure(chat.request.id, error)
        return on_fault(chat.request.id, error, chat.request.trace)

    def _too_late(self, chat: Chat) -> Outcome:
        self._release(chat)
        return failure(chat.request.id, DeadlineExceeded(TOO_LATE))

    def _has(self, chat: Chat) -> bool:
        return self._chats.get(chat.request.id) is chat

    def _release(self, chat: Chat, *, is_broken: bool = False) -> None:
        """Forget a chat, wherever it stands. What a broken one left in the cache is wiped."""
        self._chats.pop(chat.request.id, None)
        for queue in (self._waiting, self._to_score):
            if chat in queue:
                queue.remove(chat)
        for feed in [one for one in self._feeds if one.chat is chat]:
            self._close(feed)
            if is_broken:
                self._model.cache.wipe(feed.row)
        if chat in self._writing:
            row = self._writing.index(chat)
            if is_broken:
                self._model.cache.wipe(row)
            self._move_out(row)


def _is_late(chat: Chat, now: float) -> bool:
    return chat.request.deadline is not None and chat.request.deadline <= now
