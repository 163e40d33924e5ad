"""From a chat body to one question for the engine: its turns, and the one film it is about.

The latest film of the conversation is the film. Earlier ones are not read again, and the answer's notes
say so; two films in one message are refused, since comparing them is not what the model does.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundation.errors import InvalidRequest
from serving.api.service import Service
from serving.gateway import ModelInfo
from serving.limits import check_count
from serving.messages import ChatTurn, Film, Request, Sampling
from serving.schemas.chat import ChatBody, ChatMessage
from serving.schemas.common import FilmInput


@dataclass(frozen=True, eq=False)
class Conversation:
    """A question ready to be asked."""

    model: ModelInfo
    request: Request
    notes: tuple[str, ...]
    include_film: bool

    @property
    def film(self) -> Film | None:
        return self.request.film


async def read_conversation(service: Service, body: ChatBody) -> Conversation:
    """Check the body, read its film. Raises InvalidRequest or FilmError naming the part at fault."""
    model = service.model_for(body.model, "chat")
    turns = _turns(body, service)
    films = _films(body)
    film = await service.decode(films[-1][1], films[-1][0], body) if films else None
    options = {"maps": body.vesalius.maps, "map_method": body.vesalius.map_method}
    request = service.request("chat", model, film=film, turns=turns, sampling=_sampling(body, service), options=options)
    notes: tuple[str, ...] = ()
    if len(films) > 1:
        notes = (f"The conversation holds {len(films)} films; the answer is about the latest one.",)
    return Conversation(model, request, notes, body.include_film)


def _turns(body: ChatBody, service: Service) -> tuple[ChatTurn, ...]:
    limits = service.limits
    check_count("messages", len(body.messages), limits.max_messages)
    turns = tuple(_turn(message) for message in body.messages)
    for index, turn in enumerate(turns):
        if len(turn.text) > limits.max_text_chars:
            raise InvalidRequest(
                f"'messages[{index}]' has {len(turn.text)} characters; at most {limits.max_text_chars} are taken.",
                param=f"messages[{index}]",
            )
    if not turns[-1].text.strip():
        last = f"messages[{len(turns) - 1}]"
        raise InvalidRequest(f"'{last}' asks nothing: it needs a text.", param=last)
    return turns


def _turn(message: ChatMessage) -> ChatTurn:
    return ChatTurn(role="system" if message.role == "developer" else message.role, text=message.text)


def _films(body: ChatBody) -> list[tuple[str, FilmInput]]:
    """The film of each message that has one, with the field it came in, oldest first."""
    films: list[tuple[str, FilmInput]] = []
    for index, message in enumerate(body.messages):
        here = [
            (f"messages[{index}].content[{place}]", part.film)
            for place, part in enumerate(message.content)
            if part.film is not None
        ]
        if index == len(body.messages) - 1:
            here += [(f"images[{place}]", film) for place, film in enumerate(body.images)]
        if len(here) > 1:
            raise InvalidRequest(
                f"'{here[1][0]}' is a second film in one message. Ask about one film at a time.", param=here[1][0]
            )
        films += here
    return films


def _sampling(body: ChatBody, service: Service) -> Sampling:
    """More tokens than the server gives are cut to its limit; the finish reason then says "length"."""
    wanted = body.max_completion_tokens or body.max_tokens or Sampling.max_tokens
    return Sampling(
        max_tokens=min(wanted, service.limits.max_tokens),
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=tuple(body.stop or ()),
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
    )
