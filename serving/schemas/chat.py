"""POST /v1/chat/completions in OpenAI's shape.

Fields of OpenAI's that mean something here are honoured, harmless ones are accepted, and those that would
change the answer in a way this server cannot give (tools, n > 1, ...) are refused by name unless they hold
their neutral value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serving.schemas.common import LEAST_INTEGER, MOST_INTEGER, FilmReport, ImageBody, Provenance, Strings, Timings
from serving.schemas.content import ContentPart
from serving.schemas.parsing import Answer, Body, field_error

# Field of OpenAI's -> the values that ask for nothing. null is always neutral.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
}
# Fields of OpenAI's that may hold anything, because they change nothing in an answer.
_HARMLESS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "verbosity",
)  # fmt: skip
# Fields of an assistant's message that clients send back as they got them.
_NEUTRAL_IN_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "refusal": ("",),
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
    "annotations": ([],),
    "name": ("",),
}


def _without_neutral(value: Any, neutral: Mapping[str, tuple[Any, ...]], harmless: tuple[str, ...] = ()) -> Any:
    if not isinstance(value, dict):
        return value
    for name, allowed in neutral.items():
        given = value.get(name)
        if given is not None and not any(given == one and type(given) is type(one) for one in allowed):
            raise field_error(name, "asks for something this server does not do. Leave it out.")
    return {name: item for name, item in value.items() if name not in neutral and name not in harmless}


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


INDEPENDENT_BELOW = 0.1  # of reliance, which is 0 where the answer is as likely without the film
INDEPENDENT = "The film did not matter for this answer: it would have been given without it as well."


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[ContentPart], BeforeValidator(_as_parts)]

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        return _without_neutral(value, _NEUTRAL_IN_MESSAGE)

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if part.text is not None)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatOptions(Body):
    """The `vesalius` field of a question: what our server does beyond OpenAI's shape, only when asked."""

    maps: bool = Field(default=False, description="a heat map for every finding, in the answer's evidence")
    map_method: Literal["dense", "gradcam", "layercam", "legrad"] = Field(
        default="dense", description="how heat maps are made; legrad needs a tower with attention"
    )


class ChatBody(ImageBody):
    """`images` and multipart files belong to the last message. The latest film of the conversation is the film."""

    model: str | None = None
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=LEAST_INTEGER, le=MOST_INTEGER)
    stop: Strings | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    vesalius: ChatOptions = Field(default_factory=ChatOptions)

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        return _without_neutral(value, NEUTRAL, _HARMLESS)

    @field_validator("stream", "temperature", "top_p", "logprobs", "top_logprobs", "vesalius", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].get_default(call_default_factory=True) if value is None else value

    @model_validator(mode="after")
    def _conversation_is_whole(self) -> Self:
        if not self.messages or self.messages[-1].role != "user":
            raise field_error("messages", "must end with a message of role 'user'.")
        if self.stop is not None and len(self.stop) > 4:
            raise field_error("stop", "may hold at most 4 strings.")
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "only goes with 'stream': true.")
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "only goes with 'logprobs': true.")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise field_error("max_tokens", "differs from 'max_completion_tokens'. Give one of the two.")
        return self


class Finding(Answer):
    """side (left, right, bilateral), zone (upper, middle, lower): where a finding that is present lies, None where unknown."""

    label: str
    probability: float
    threshold: float | None = None
    side: str | None = None
    zone: str | None = None


class HeatMap(Answer):
    """`grid` (rows of columns, 0 to 1) lies over the film as the model saw it; larger is more evidence for `label`.

    low, high: what 0 and 1 stand for; of method "dense", differences of cosines between "there is" and "there is no".
    """

    label: str
    grid: list[list[float]]
    low: float = 0.0
    high: float = 1.0
    method: str = "dense"


class Evidence(Answer):
    """What an answer rests on. reliance: how much it moved when the picture was taken away, None if not measured.

    heatmap: of the finding asked about, else of the most probable one present. maps: one a finding, where asked for.
    """

    assessed: bool = True
    looks_like: str = ""
    findings: list[Finding] = Field(default_factory=list)
    heatmap: HeatMap | None = None
    maps: list[HeatMap] | None = None
    reliance: float | None = None


class ChatExtras(Answer):
    """The `vesalius` field of a chat answer. `film` is None when the conversation holds none."""

    evidence: Evidence | None = None
    film: FilmReport | None = None
    notes: list[str] = Field(default_factory=list)
    provenance: Provenance
    timings: Timings


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token as the vocabulary writes it ("##" goes on with a word), and the most probable ones in its place."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list)

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        top = [TopLogprob(token=token, logprob=value, bytes=list(token.encode())) for token, value in report["top"]]
        token = str(report["token"])
        return cls(token=token, logprob=report["logprob"], bytes=list(token.encode()), top_logprobs=top)


class Logprobs(Answer):
    content: list[TokenLogprob] | None = None
    refusal: None = None

    @classmethod
    def of(cls, reports: Sequence[Mapping[str, Any]]) -> Self:
        return cls(content=[TokenLogprob.of(report) for report in reports])


class AnswerMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class Choice(Answer):
    index: int = 0
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    vesalius: ChatExtras


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Answer):
    index: int = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(Answer):
    """One event of a streamed answer. `vesalius` comes with the finish reason, `usage` after it when asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    vesalius: ChatExtras | None = None
