"""Questions and answers about films, from a manifest's `qa` field or from LLaVA's conversations, as one row type.

    manifest row   "qa": [{"question", "answer", "answer_type": "CLOSED" | "OPEN", "question_type", "follows"}, ...]
    LLaVA          [{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]}, ...]
                   further fields of an entry (`split`, `patient_id`, `licence`, ...) mean what they mean in a manifest

`answer_type` may be left out: yes and no are closed, anything else open. `follows` says that a question leans on the one
before it, as the later turns of a LLaVA conversation do. Every problem names its row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foundation.errors import ManifestError
from foundation.prompt import Turn
from foundation.questions import plain_words

if TYPE_CHECKING:
    from training.manifests.manifest import Row

OTHER = "OTHER"
_SHOWN = 8
_IMAGE_MARK = "<image>"


class Problems(Protocol):
    def add(self, number: int, sentence: str) -> None: ...


@dataclass(frozen=True, eq=False)
class QaRow:
    """One question about one film. kind: the manifest's `question_type`, the first where it names several."""

    film: Row
    question: str
    answer: str
    is_closed: bool
    kind: str = OTHER
    earlier: tuple[Turn, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        return (*self.earlier, Turn("user", self.question))

    @property
    def truth(self) -> str:
        """The answer as it is compared: "yes", "no", or plain words."""
        return plain_words(self.answer)

    @property
    def is_yes_no(self) -> bool:
        return self.truth in ("yes", "no")


def has_questions(row: Row) -> bool:
    return bool(row.extra.get("qa"))


def read_questions(rows: Sequence[Row]) -> tuple[QaRow, ...]:
    """All questions of these rows in their order. Raises ManifestError naming rows and remedy."""
    found: list[QaRow] = []
    problems: list[str] = []
    for row in rows:
        items = row.extra.get("qa") or []
        if not isinstance(items, list):
            problems.append(f"row {row.number}: 'qa' must be a list of {{question, answer}}")
            continue
        earlier: tuple[Turn, ...] = ()
        for place, item in enumerate(items):
            problem = _problem(item)
            if problem:
                problems.append(f"row {row.number}: qa[{place}] {problem}")
                continue
            pair = _pair(row, item, earlier)
            found.append(pair)
            earlier = (*pair.turns, Turn("assistant", pair.answer))
    if problems:
        rest = len(problems) - _SHOWN
        raise ManifestError("; ".join(problems[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else ""))
    return tuple(found)


def _problem(item: Any) -> str:
    """What is wrong with one pair, "" if nothing."""
    if not isinstance(item, Mapping):
        return "is no object: write {question, answer}"
    for name in ("question", "answer"):
        value = item.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not plain_words(str(value)):
            return f"has no {name!r}: give it as words, or cut the pair"
    kind = item.get("answer_type")
    if kind is not None and str(kind).strip().upper() not in ("CLOSED", "OPEN"):
        return f"has the answer_type {kind!r}: write CLOSED or OPEN"
    return ""


def _pair(row: Row, item: Mapping[str, Any], earlier: tuple[Turn, ...]) -> QaRow:
    answer = str(item["answer"]).strip()
    given = str(item.get("answer_type") or "").strip().upper()
    kind = str(item.get("question_type") or OTHER).split(",")[0].strip().upper()
    return QaRow(
        row,
        str(item["question"]).strip(),
        answer,
        is_closed=given == "CLOSED" if given else plain_words(answer) in ("yes", "no"),
        kind=kind or OTHER,
        earlier=earlier if item.get("follows") else (),
    )


# --- LLaVA -----------------------------------------------------------------------------------------------------------


def read_llava(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the entry, counted from 1; a manifest row's fields) for each entry of LLaVA's list."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path.name} is not valid JSON at line {error.lineno}: write one list of conversations") from None
    if not isinstance(entries, list):
        raise ManifestError(f"{path.name} is no list: LLaVA's format is [{{id, image, conversations}}, ...]")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
            problems.add(number, "has no list 'conversations': write {id, image, conversations: [{from, value}, ...]}")
            continue
        qa = _turns(entry["conversations"], number, problems)
        yield number, {**{name: value for name, value in entry.items() if name != "conversations"}, "qa": qa}


def _turns(said: Sequence[Any], number: int, problems: Problems) -> list[dict[str, Any]]:
    """Questions and answers of one conversation, each but the first leaning on the one before."""
    speakers = [one.get("from") if isinstance(one, Mapping) else None for one in said]
    if not said or len(said) % 2 or speakers != ["human", "gpt"] * (len(said) // 2):
        problems.add(number, "its conversation must alternate between 'human' and 'gpt', beginning with 'human'")
        return []
    words = [str(one.get("value") or "").replace(_IMAGE_MARK, "").strip() for one in said]
    return [
        {"question": asked, "answer": answered, "follows": place > 0}
        for place, (asked, answered) in enumerate(zip(words[::2], words[1::2], strict=True))
    ]
