"""`vesalius predict ADAPTER FILE...`: films through an adapter, whatever its task; masks and heat maps are written on wish.

classification   probabilities, sets        segmentation   classes found, their areas; --out: a PNG a class
anomaly          p-value and branches       fusion         one patient from all files, --text and --value
                 --out: a 16-bit PNG
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.show import Show
from app.words import RESEARCH_USE
from foundation.errors import InvalidRequest
from serving.wording import grade

if TYPE_CHECKING:
    from serving.client import Client
    from serving.schemas.segment import BoxMark, MaskFormat, PointMark

NAMED = 4  # labels; more are counted
Answered = tuple[dict[str, Any], list[str]]  # as JSON, and as lines for a person


def add_predict_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("adapter")
    command.add_argument("files", type=Path, nargs="*", metavar="FILE")
    command.add_argument("--out", type=Path, metavar="DIR", help="where masks and heat maps are written, as PNG")
    command.add_argument("--label", action="append", dest="labels", help="segmentation: only this class; may be repeated")
    command.add_argument("--point", action="append", default=[], metavar="ROW,COLUMN", help="segmentation: what is meant")
    command.add_argument("--box", action="append", default=[], metavar="TOP,LEFT,BOTTOM,RIGHT", help="segmentation: where")
    command.add_argument("--text", help="fusion: the patient's note")
    command.add_argument("--value", action="append", default=[], metavar="FIELD=VALUE", help="fusion: a field of the table")


def predict(client: Client, chosen: argparse.Namespace, films: Sequence[bytes], show: Show) -> None:
    """Ask the adapter what it is for, then that. Raises InvalidRequest where it is for nothing that can be predicted."""
    if "/" in chosen.adapter:  # it would become part of an address
        raise InvalidRequest(
            f"{chosen.adapter!r} is no adapter's name. Write the adapter first, then its films: vesalius predict ADAPTER FILE.",
            param="adapter",
        )
    model = client.model(chosen.adapter)
    answers: Mapping[str, Callable[[Client, argparse.Namespace, Sequence[bytes]], Answered]] = {
        "classify": _classify,
        "segment": _segment,
        "anomaly": _anomaly,
        "fuse": _fuse,
    }
    capability = next((one for one in model.vesalius.capabilities if one in answers), None)
    if capability is None or model.vesalius.kind == "base":
        can = ", ".join(model.vesalius.capabilities) or "nothing"
        raise InvalidRequest(f"'{chosen.adapter}' predicts nothing; it can do: {can}.", param="adapter")
    if not films and capability != "fuse":
        raise InvalidRequest("Name at least one film.", param="files")
    answer, lines = answers[capability](client, chosen, films)
    show(answer, "\n".join([*lines, RESEARCH_USE]))


def _classify(client: Client, chosen: argparse.Namespace, films: Sequence[bytes]) -> Answered:
    answer = client.classify(films, chosen.adapter).model_dump(mode="json")

    def told(_: Path, item: dict[str, Any]) -> list[str]:
        lines = [finding_line(one["label"], one["probability"], one["threshold"]) for one in item["labels"]]
        return [*lines, *conformal_lines(item["labels"])]

    return answer, _told(chosen.files, answer, told)


def _segment(client: Client, chosen: argparse.Namespace, films: Sequence[bytes]) -> Answered:
    form: MaskFormat = "png" if chosen.out is not None else "rle"
    points, boxes = _points(chosen.point), _boxes(chosen.box)
    found = client.segment(films, chosen.adapter, labels=chosen.labels, points=points, boxes=boxes, mask_format=form)
    answer = found.model_dump(mode="json")

    def told(path: Path, item: dict[str, Any]) -> list[str]:
        lines = [_mask_line(mask) for mask in item["masks"]] or ["nothing here"]
        for mask in item["masks"] if chosen.out is not None else ():
            name = f"{path.stem}.{chosen.adapter}.{mask['label'].replace(' ', '-')}.png"
            lines.append(f"written: {_write(chosen.out / name, mask['png'])}")
            mask["png"] = name
        return lines

    return answer, _told(chosen.files, answer, told)


def _mask_line(mask: Mapping[str, Any]) -> str:
    if not mask["found"]:
        return f"{mask['label']:24} nothing here ({mask['presence']:.3f} below {mask['threshold']:.3f})"
    area = f"{mask['area_pixels']} pixels" if mask["area_mm2"] is None else f"{mask['area_mm2'] / 100:.1f} cm2"
    return f"{mask['label']:24} {mask['presence']:6.3f} {area}"


def _anomaly(client: Client, chosen: argparse.Namespace, films: Sequence[bytes]) -> Answered:
    answer = client.anomaly(films, chosen.adapter, heat=chosen.out is not None).model_dump(mode="json")

    def told(path: Path, item: dict[str, Any]) -> list[str]:
        branches = ", ".join(f"{name} {value:.3f}" for name, value in item["branches"].items())
        lines = [f"p = {item['p_value']:.3f} among {item['normals']} normal films ({branches})"]
        if item["heat"] is not None:
            name = f"{path.stem}.{chosen.adapter}.heat.png"
            low, high = item["heat"]["low"], item["heat"]["high"]
            lines.append(
                f"written: {_write(chosen.out / name, item['heat']['png'])} (0 to 65535 stand for {low:.3f} to {high:.3f})"
            )
            item["heat"]["png"] = name
        return lines

    return answer, _told(chosen.files, answer, told)


def _fuse(client: Client, chosen: argparse.Namespace, films: Sequence[bytes]) -> Answered:
    answer = client.fuse(chosen.adapter, films, text=chosen.text, tabular=_table(chosen.value)).model_dump(mode="json")
    result = answer["result"]
    if result is None:
        return answer, [f"not assessed: this looks like {answer['looks_like'] or 'something else'}"]
    lines = [bar(result["label"], result["probability"]), f"  from {', '.join(result['present'])} ({result['method']})"]
    lines += [f"  {name:22} alone {chance:.3f}" for name, chance in result["unimodal"].items()]
    return answer, lines


def _told(files: Sequence[Path], answer: Mapping[str, Any], told: Callable[[Path, dict[str, Any]], list[str]]) -> list[str]:
    """Each film's name, then its lines, or why there are none."""
    lines = []
    for path, item in zip(files, answer["data"], strict=True):
        lines.append(path.name)
        if item["error"]:
            lines.append(f"  {item['error']['message']}")
        elif not item["assessed"]:
            lines.append(f"  not assessed: this looks like {item['looks_like'] or 'something else'}")
        else:
            lines += [f"  {line}" for line in told(path, item)]
    return lines


def bar(label: str, value: float) -> str:
    return f"{label:24} {value:6.3f} {'#' * round(value * 30)}"


def finding_line(label: str, value: float, threshold: float | None) -> str:
    """Its bar; of what reaches its threshold, how sure that is to be called."""
    if threshold is None or value < threshold:
        return bar(label, value)
    word = grade(value)
    return f"{bar(label, value)} {f'{word}: ' if word else ''}above its threshold of {threshold:.3f}"


def conformal_lines(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels whose films without it, or with it, look otherwise, by name where they are few; the rest is counted.

    A probability higher than in nine of ten films without a finding may still be a low one: that is not called certain.
    """
    known = [one for one in labels if one["conformal"]]
    lines = []
    for name, words in (("present", "unlike films without it"), ("absent", "unlike films with it"), ("uncertain", "undecided")):
        said = [one["label"] for one in known if one["conformal"]["set"] == name]
        if said:
            told = ", ".join(said) if len(said) <= NAMED else f"{len(said)} of {len(known)} labels"
            lines.append(f"at {known[0]['conformal']['coverage']:.0%} coverage, {words}: {told}")
    return lines


def _write(path: Path, uri: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(uri.partition(",")[2]))
    return path


def _points(texts: Sequence[str]) -> list[PointMark]:
    from serving.schemas.segment import PointMark

    return [PointMark(row=row, column=column) for row, column in (_numbers(text, 2, "point") for text in texts)]


def _boxes(texts: Sequence[str]) -> list[BoxMark]:
    from serving.schemas.segment import BoxMark

    sides = (_numbers(text, 4, "box") for text in texts)
    return [BoxMark(top=top, left=left, bottom=bottom, right=right) for top, left, bottom, right in sides]


def _numbers(text: str, count: int, name: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or min(numbers) < 0:
        raise InvalidRequest(f"--{name} takes {count} numbers of at least 0 with commas between, not '{text}'.", param=name)
    return numbers


def _table(pairs: Sequence[str]) -> dict[str, str | float]:
    """FIELD=VALUE; what reads as a finite number is one."""
    table: dict[str, str | float] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"--value takes FIELD=VALUE, not '{pair}'.", param="value")
        is_number = value.lstrip("+-").replace(".", "", 1).isdecimal()
        table[name] = float(value) if is_number else value
    return table
