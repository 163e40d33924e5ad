"""What the decoder reads and how its tokens become text: the findings, the turns, the prompt, and the way back.

    [BOS] <image> x N <findings> effusion present 83 right small ; cardiomegaly absent 10
          <user> is there fluid ? [SEP] yes presence ; effusion present 83 right small <assistant> yes . ... [EOS] <user> ...

The hint behind [SEP] is what the question asks, the verdict where it is a closed one, and the clauses it is about, so that
the decoder has at hand all that it has to word.

Training and serving build prompts by these functions alone. A person's words never become a special token: they are
tokenised with the specials switched off. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from foundation.errors import CheckpointRefused, InvalidRequest
from foundation.questions import QuestionIntent, interpret_question

Role = Literal["user", "assistant"]
NOT_ASSESSED = "not assessed"
NOTHING = "nothing"
USUAL = ("effusion", "pneumothorax", "pneumonia", "cardiomegaly")
"""Findings that a description denies where they are absent."""
_ELSEWHERE = {"left": ("right",), "right": ("left",), "bilateral": ("left", "right")}
SPECIALS = ("[BOS]", "[EOS]", "[SEP]", "[PAD]", "<image>", "<findings>", "<user>", "<assistant>")


@dataclass(frozen=True)
class FindingState:
    """What is known of one finding: its calibrated probability, the threshold's verdict, and where and how large, if known."""

    name: str
    probability: float
    is_present: bool
    side: str | None = None
    zone: str | None = None
    severity: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise InvalidRequest(f"The probability of {self.name} is {self.probability}; give 0 to 1.", param="findings")

    @property
    def percent(self) -> int:
        return round(100 * self.probability)


@dataclass(frozen=True)
class Turn:
    role: Role
    text: str


def findings_text(findings: Sequence[FindingState] | None) -> str:
    """The findings as the prompt states them; None means that the film was not assessed at all.

    One clause a finding: name, present or absent, percent, then side, zone and severity where they are known. What is
    not listed was not assessed, and the decoder is trained to say so.
    """
    if findings is None:
        return NOT_ASSESSED
    return " ; ".join(_clause(state) for state in findings)


def _clause(state: FindingState) -> str:
    words = [state.name, "present" if state.is_present else "absent", str(state.percent)]
    return " ".join([*words, *(word for word in (state.side, state.zone, state.severity) if word)])


def hint_text(question: str, earlier: Sequence[str], findings: str | None) -> str:
    """The hint that follows a question after [SEP]: its verdict, what it asks, and the clauses of `findings` it is about.

    `earlier` are the previous questions. A closed question begins with its "yes" or "no", which follows from the clauses and
    is only to be worded. A question about the whole film is about all that is present ("nothing", if nothing is); a
    description also denies the usual suspects that are absent.
    """
    intent = interpret_question(question, earlier)
    if intent.term:
        return f"{intent.term} not assessed"
    is_assessed = findings not in (None, NOT_ASSESSED)
    about = _clauses_about(intent, [clause for clause in str(findings).split(" ; ") if clause] if is_assessed else None)
    kind = "absence" if intent.asks_absence and intent.kind == "presence" else intent.kind
    asked = " ".join(word for word in (_verdict(intent, about), intent.side, kind) if word)
    return " ; ".join([asked, *about])


def _clauses_about(intent: QuestionIntent, clauses: Sequence[str] | None) -> list[str]:
    """clauses: of all findings, None where the film was not assessed or there is none."""
    if intent.findings:
        return [_find_clause(name, clauses or ()) for name in intent.findings[:4]]
    if intent.kind == "other" or clauses is None:
        return []
    present = [clause for clause in clauses if " present " in clause]
    if not present:
        return [NOTHING]
    denied = [f"no {name}" for clause in clauses for name in USUAL if clause.startswith(f"{name} absent ")]
    return [*present, *(denied if intent.kind == "describe" else [])]


def _verdict(intent: QuestionIntent, about: Sequence[str]) -> str:
    """ "yes" or "no" to a closed question, "" where there is no such answer."""
    if not about or intent.kind not in ("presence", "normal") or len(intent.findings) > 1 or about[0].endswith(NOT_ASSESSED):
        return ""
    is_present = " present " in about[0] and not any(is_elsewhere(intent.side, word) for word in about[0].split())
    return "yes" if is_present != intent.asks_absence else "no"


def is_elsewhere(asked: str | None, stated: str | None) -> bool:
    """Whether a finding stated on one side answers a question about another with no."""
    return stated in _ELSEWHERE.get(asked or "", ())


def _find_clause(name: str, clauses: Sequence[str]) -> str:
    starts = (f"{name} present ", f"{name} absent ")
    return next((clause for clause in clauses if clause.startswith(starts)), f"{name} {NOT_ASSESSED}")


class PromptTokenizer:
    """The decoder's WordPiece tokenizer, with the one door for text from outside (`encode_plain`)."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self.file = file
        self._with_specials = Tokenizer.from_file(str(file))
        self._plain = Tokenizer.from_file(str(file))
        self._plain.encode_special_tokens = True
        missing = [token for token in SPECIALS if self._with_specials.token_to_id(token) is None]
        if missing:
            raise CheckpointRefused(f"The decoder's tokenizer lacks {', '.join(missing)}; use the folder it was trained with.")

    @cached_property
    def vocab_size(self) -> int:
        return int(self._with_specials.get_vocab_size())

    @cached_property
    def special_ids(self) -> dict[str, int]:
        return {token: cast(int, self._with_specials.token_to_id(token)) for token in SPECIALS}

    @cached_property
    def silent_ids(self) -> tuple[int, ...]:
        """Special tokens the decoder must never say; [EOS] is not among them."""
        added: dict[int, Any] = self._with_specials.get_added_tokens_decoder()
        return tuple(sorted(index for index in added if index != self.special_ids["[EOS]"]))

    def encode_plain(self, text: str) -> list[int]:
        """Text from outside: `<assistant>` in it is eleven harmless characters."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [str(self._with_specials.id_to_token(index)) for index in ids]

    def prompt(self, turns: Sequence[Turn], findings: str | None, image_tokens: int, *, with_hints: bool = True) -> list[int]:
        """Token ids up to and including the last `<assistant>`; `findings` is `findings_text(...)`, None for no film.

        The last turn must be the user's. Answers of earlier turns end with [EOS]. Without hints it is what the chat
        template of an exported model writes; the decoder is taught both.
        """
        if not turns or turns[-1].role != "user":
            raise InvalidRequest("The last message must be the user's question.", param="messages")
        special = self.special_ids
        ids = [special["[BOS]"]] + [special["<image>"]] * image_tokens
        if findings is not None:
            ids += [special["<findings>"], *self.encode_plain(findings)]
        earlier: list[str] = []
        for turn in turns:
            if turn.role == "user":
                ids += [special["<user>"], *self.encode_plain(turn.text)]
                if with_hints:
                    ids += [special["[SEP]"], *self.encode_plain(hint_text(turn.text, earlier, findings))]
                ids.append(special["<assistant>"])
                earlier.append(turn.text)
            else:
                ids += [*self.encode_plain(turn.text), special["[EOS]"]]
        return ids

    def text(self, ids: Iterable[int]) -> str:
        """Prompt ids as one string that plain transformers tokenises to the same ids (what `export` is asked with)."""
        return " ".join(self.tokens(ids)).replace(" ##", "")


_CLOSING = frozenset(".,;:?!)%'’")
_OPENING = frozenset("('’-/")
_ACRONYMS = {"i": "I", "ct": "CT", "mri": "MRI", "tb": "TB", "ptb": "PTB", "covid": "COVID", "ap": "AP", "pa": "PA"}


class Detokeniser:
    """WordPiece tokens to sentence-cased text, a piece at a time; what was said is never changed later.

    A word is said as far as it is known, unless the "##" pieces that may follow decide how it is written: an acronym that
    may be the beginning of a longer word, digits that may be decimals. Digits on both sides of a point and words on both
    sides of a hyphen are joined ("0.83", "right-sided").
    """

    def __init__(self) -> None:
        self._word = ""  # the last one so far: "##" pieces may follow
        self._is_said = True  # whether all of `_word` is
        self._before, self._last = "", ""  # the two words before it
        self._starts_sentence = True
        self._has_text = False

    def push(self, token: str) -> str:
        """The text that is certain after this token."""
        piece = token.removeprefix("##")
        if piece != token and self._word:
            self._word += piece
            return piece if self._is_said else ""
        said = self.flush()
        self._before, self._last = self._last, self._word
        self._word, self._is_said = piece, False
        return said if self._is_open else said + self.flush()

    def flush(self) -> str:
        """What was held back of the last word."""
        if self._is_said or not self._word:
            return ""
        word, self._is_said = self._word, True
        glue = "" if not self._has_text or self._is_joined(word) else " "
        shown = _ACRONYMS.get(word, word)
        if self._starts_sentence and word[0].isalnum():
            shown = shown[0].upper() + shown[1:]
            self._starts_sentence = False
        if word in ".?!":
            self._starts_sentence = True
        self._has_text = True
        return glue + shown

    @property
    def _is_fraction(self) -> bool:
        return self._last == "." and self._before.isdigit() and self._word.isdigit()

    @property
    def _is_open(self) -> bool:
        """Whether pieces to come decide how the word is written."""
        return self._is_fraction or any(name.startswith(self._word) for name in _ACRONYMS)

    def _is_joined(self, word: str) -> bool:
        if word in _CLOSING or word in "-/":
            return True
        if self._last in _OPENING:
            return True
        is_decimal = self._is_fraction
        if is_decimal:
            self._starts_sentence = False
        return is_decimal


def detokenise(tokens: Iterable[str]) -> str:
    """All tokens at once; equal to pushing them one by one."""
    joiner = Detokeniser()
    return "".join([*(joiner.push(token) for token in tokens), joiner.flush()])
