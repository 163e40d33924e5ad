"""What an answer rests on, as a card beside it: findings or a refusal, reliance, provenance."""

from __future__ import annotations

import html
from collections.abc import Iterable

from app import words
from app.bars import Bar, bars_html
from serving.schemas.chat import INDEPENDENT, INDEPENDENT_BELOW, ChatExtras, Evidence
from serving.schemas.common import Provenance, Timings

WEAK_BELOW = 0.5


def evidence_card(extras: ChatExtras) -> str:
    """The whole card of a chat answer; an answer without a film rests on nothing."""
    evidence = extras.evidence
    if evidence is None:
        return empty_card(words.EVIDENCE, words.EVIDENCE_EMPTY)
    if not evidence.assessed:
        return refusal_card(evidence.looks_like, extras.provenance, extras.timings)
    is_calibrated = extras.provenance.adapter is not None
    found = sorted(evidence.findings, key=lambda one: -one.probability)
    bars = bars_html([Bar(one.label, one.probability, one.threshold) for one in found])
    parts = [
        bars,
        _soft(words.CALIBRATED if is_calibrated else words.NOT_CALIBRATED),
        _slice(extras),
        _reliance(evidence),
        *(_soft(note) for note in extras.notes if note != INDEPENDENT),  # said by `_reliance`, larger
        provenance_html(extras.provenance, extras.timings),
    ]
    return card(words.EVIDENCE, parts)


def refusal_card(looks_like: str, provenance: Provenance | None, timings: Timings | None) -> str:
    """In place of numbers, where the gate refuses."""
    return card(words.EVIDENCE, [*refusal(looks_like), provenance_html(provenance, timings)])


def refusal(looks_like: str) -> tuple[str, str]:
    said = words.NOT_ASSESSED.format(kind=looks_like) if looks_like else words.NOT_ASSESSED_PLAIN
    return f'<p class="refusal">{html.escape(said)}</p>', f"<p>{html.escape(words.NOT_ASSESSED_WHY)}</p>"


def empty_card(title: str, sentence: str) -> str:
    return card(title, [_soft(sentence)])


def card(title: str, parts: Iterable[str]) -> str:
    """parts: HTML, already escaped."""
    return f'<section class="card" aria-live="polite"><h2>{html.escape(title)}</h2>{"".join(parts)}</section>'


def provenance_html(provenance: Provenance | None, timings: Timings | None) -> str:
    """Small, folded away: what made these numbers."""
    rows = []
    for field, title in words.PROVENANCE_ROWS.items():
        value = getattr(provenance, field, None)
        if value:
            rows.append((title, str(value)))
    if timings is not None:
        times = {name: f"{getattr(timings, f'{name}_ms'):.0f}" for name in ("compute", "decode", "queue")}
        rows.append((words.TIMES, words.TIMES_OF.format(**times)))
    listed = "".join(f"<dt>{html.escape(title)}</dt><dd>{html.escape(value)}</dd>" for title, value in rows)
    return f"<details><summary>{html.escape(words.PROVENANCE)}</summary><dl>{listed}</dl></details>" if rows else ""


def _reliance(evidence: Evidence) -> str:
    if evidence.reliance is None:
        return ""
    number = words.RELIANCE_NUMBER.format(value=f"{evidence.reliance:.2f}")
    if evidence.reliance < INDEPENDENT_BELOW:
        sentence, kind = words.INDEPENDENT, "flag strong"
    elif evidence.reliance < WEAK_BELOW:
        sentence, kind = words.WEAK, "flag"
    else:
        sentence, kind = words.DEPENDENT, "reliance"
    return f'<p class="{kind}">{html.escape(sentence)} <span class="soft">({html.escape(number)})</span></p>'


def _slice(extras: ChatExtras) -> str:
    if extras.film is None or extras.film.slices == 1:
        return ""
    return _soft(words.SEEN_SLICE.format(index=extras.film.slice_index + 1))


def _soft(sentence: str) -> str:
    return f'<p class="soft">{html.escape(sentence)}</p>'
