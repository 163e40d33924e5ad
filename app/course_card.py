"""One patient's estimated outcome, as a card: the probability, what each part says alone, what moved it, what was missing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from app import words
from app.bars import Bar, bars_html
from app.chart import missing_of, title_of
from app.evidence import card, provenance_html, refusal
from serving.schemas.fuse import Cell, FuseAnswer, FusedResult
from serving.schemas.models import TableField


def course_card(answer: FuseAnswer, fields: Sequence[TableField], cells: Mapping[str, Cell]) -> str:
    """fields: those the adapter reads; cells: what was filled in of them."""
    provenance = provenance_html(answer.provenance, answer.timings)
    result = answer.result
    if not answer.assessed or result is None:
        return card(words.COURSE_CARD, [*refusal(answer.looks_like), _said(words.WITHOUT_FILM), provenance])
    bar = Bar(result.label, result.probability, result.threshold)
    parts = [
        bars_html([bar]),
        _said(words.OUTCOME[result.positive], "strong" if result.positive else ""),
        _soft(words.PRIOR.format(value=f"{result.prior:.2f}")),
        _conformal(result),
        _parts(result),
        _shares(result),
        _missing(result, fields, cells),
        provenance,
    ]
    return card(words.COURSE_CARD, parts)


def _conformal(result: FusedResult) -> str:
    if not result.conformal:
        return ""
    is_open = len(result.conformal) > 1
    return _soft(words.RULED_OUT_NONE if is_open else words.RULED_OUT.format(labels=", ".join(result.conformal)))


def _parts(result: FusedResult) -> str:
    alone = [Bar(words.ALONE.format(name=name), chance) for name, chance in result.unimodal.items()]
    bars = bars_html([*alone, Bar(words.TOGETHER, result.probability)])
    between = [one for one in result.subsets if 1 < len(one.modalities) < len(result.present)]
    more = ""
    if between:
        listed = bars_html([Bar(words.JOIN.join(one.modalities), one.probability) for one in between])
        more = f"<details><summary>{html.escape(words.SUBSETS)}</summary>{listed}</details>"
    return f"{_title(words.ALONE_TITLE)}{bars}{more}{_method(result)}"


def _method(result: FusedResult) -> str:
    if len(result.present) == 1:
        return ""
    said = words.METHODS.get(result.method) or words.METHOD_ALONE.format(name=result.method)
    return _soft(f"{words.METHOD}: {said}")


def _shares(result: FusedResult) -> str:
    """Bars to either side of a middle line, as long as the largest of them allows."""
    if not result.shapley:
        return ""
    largest = max(map(abs, result.shapley.values())) or 1.0
    rows = []
    for name, share in sorted(result.shapley.items(), key=lambda one: -abs(one[1])):
        width = 50 * abs(share) / largest
        side = f"left:50%;width:{width:.1f}%" if share >= 0 else f"left:{50 - width:.1f}%;width:{width:.1f}%"
        said = html.escape(f"{name}: {words.RAISES if share >= 0 else words.LOWERS} ({share:+.2f})")
        rows.append(
            f'<li aria-label="{said}" title="{said}"><span class="name">{html.escape(name)}</span>'
            f'<span class="track middle" aria-hidden="true"><span class="fill" style="{side}"></span></span>'
            f'<span class="number">{share:+.2f}</span></li>'
        )
    return f'{_title(words.SHARES_TITLE)}<ul class="bars shares">{"".join(rows)}</ul>{_soft(words.SHARES_NOTE)}'


def _missing(result: FusedResult, fields: Sequence[TableField], cells: Mapping[str, Cell]) -> str:
    titles = {field.name: title_of(field) for field in fields}
    sentences = []
    if result.absent:
        sentences.append(words.MISSING_PARTS.format(names=", ".join(result.absent)))
    if empty := missing_of(fields, cells, result.absent):
        sentences.append(words.MISSING_FIELDS.format(names=", ".join(empty)))
    if not sentences:
        sentences.append(words.NOTHING_MISSING)
    if result.unusual:
        sentences.append(words.UNUSUAL.format(names=", ".join(titles.get(name, name) for name in result.unusual)))
    if result.removed:
        sentences.append(words.REMOVED.format(count=result.removed))
    return _title(words.MISSING_TITLE) + "".join(_said(sentence) for sentence in sentences)


def _title(text: str) -> str:
    return f"<h3>{html.escape(text)}</h3>"


def _said(sentence: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(sentence)}</p>' if kind else f"<p>{html.escape(sentence)}</p>"


def _soft(sentence: str) -> str:
    return _said(sentence, "soft")
