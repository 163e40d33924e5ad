"""The chat task: LoRA on the decoder alone, so that it answers a user's own kind of question.

    adapter_model.safetensors   LoRA on the blocks of `decoder/` (LlamaForCausalLM), as PEFT writes and reads it
    head.safetensors            empty: the decoder's own output layer answers
    card.json                   labels: the kinds of question it was taught; base: towers and decoder it was made for

The towers, the projector and the findings in the prompt stay the base's; `head.findings` on the card names the adapter
whose probabilities were stated in training. A result is what an answer says, read back from its words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapters.files import Adapter, HasFingerprint, HasLanguageModel, ParsedAdapter, bind_decoder_adapter, parse_adapter
from adapters.tasks.heads import head_options
from foundation.errors import AdapterRefused
from foundation.questions import plain_words

TASK = "chat"
CANNOT_TELL = "i cannot tell from this picture ."
Says = Literal["yes", "no", "cannot tell", "something else"]
_FIRST_WORD = re.compile(r"\W*(yes|no)\b")
_DECLINED = re.compile(r"\bcannot (tell from|be told)\b")


@dataclass(frozen=True)
class ChatResult:
    """One answer. yes_probability: of "yes" against "no" as its first word, whatever was said; None if not asked."""

    text: str
    yes_probability: float | None = None

    @property
    def says(self) -> Says:
        text = self.text.lower()
        first = _FIRST_WORD.match(text)
        if first is not None:
            return "yes" if first[1] == "yes" else "no"
        return "cannot tell" if _DECLINED.search(text) else "something else"

    @property
    def words(self) -> str:
        return plain_words(self.text)


@dataclass(frozen=True)
class StatedBy:
    """Whose findings the prompts of training stated: an adapter's name and digest; both empty for zero-shot."""

    name: str = ""
    digest: str = ""

    def to_head(self) -> Mapping[str, Any]:
        return {"findings": self.name, "findings_digest": self.digest}


def open_chat_adapter(folder: Path, backbone: HasFingerprint, decoder: HasLanguageModel) -> Adapter:
    """Read and bind a chat adapter. Refused where it is another task's, another base's, or has a head."""
    return bind_chat_adapter(parse_adapter(folder), backbone, decoder)


def bind_chat_adapter(parsed: ParsedAdapter, backbone: HasFingerprint, decoder: HasLanguageModel) -> Adapter:
    """As `open_chat_adapter`, of a folder that has been read."""
    adapter = bind_decoder_adapter(parsed, backbone, decoder)
    head_options(adapter.card, TASK, tuple(StatedBy().to_head()))
    if adapter.head:
        raise AdapterRefused(f"The adapter {adapter.card.name!r} holds a head, which the chat task has not; write it again.")
    return adapter
