"""A stopped run on disk: what it needs to go on to the same numbers. Safetensors and JSON only.

    FOLDER/place.json           where the run stands and the recipe it is of, as plain values
    FOLDER/PART.safetensors     its tensors, one file for each part the caller names ("learner", "optimizer", ...)

A run killed at any moment leaves the state before or the state after, never a mixture: all files are written beside
their places, one rename (`place.json.next`) decides, and the renames that follow it are finished by whoever comes next.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundation.errors import InvalidRequest

PLACE = "place.json"
_DECIDED = "place.json.next"


def save_state(
    folder: Path, recipe: Mapping[str, Any], place: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Replace the state in `folder`. Files of parts that are not named now stay, and are no part of the state."""
    folder.mkdir(parents=True, exist_ok=True)
    _finish(folder)
    for part, tensors in parts.items():
        # NOTE: clones, because safetensors refuses tensors that share memory (tied weights do).
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, _partial(folder, part))
    record = json.dumps({**place, "recipe": recipe, "parts": sorted(parts)})
    partial = folder / f"{PLACE}.partial"
    partial.write_text(record, encoding="utf-8")
    partial.replace(folder / _DECIDED)
    _finish(folder)


def read_place(folder: Path) -> dict[str, Any] | None:
    """What `place` and `recipe` were at the last save; None where nothing was saved."""
    _finish(folder)
    path = folder / PLACE
    if not path.is_file():
        return None
    try:
        place: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InvalidRequest(f"{PLACE} in {folder.name!r} is not valid JSON; choose another folder.", param="out") from None
    return place


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part, on the CPU."""
    path = folder / f"{part}.safetensors"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError):
        raise InvalidRequest(
            f"{path.name} in {folder.name!r} is missing or damaged: the run cannot go on. Choose another folder.", param="out"
        ) from None
    return tensors


def check_recipe(folder: Path, held: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another recipe; the error names every value that differs."""
    changed = _differences(held, json.loads(json.dumps(own)))
    if changed:
        raise InvalidRequest(
            f"The run in {folder.name!r} is of another recipe: {', '.join(changed)} differ. Go on with the recipe it was "
            "started with, or choose another folder.",
            param=changed[0],
        )


def check_names(folder: Path, held: Iterable[str], own: Iterable[str]) -> None:
    """Refuse tensors that are not those of the model at hand."""
    odd = sorted(set(held) ^ set(own))
    if odd:
        raise InvalidRequest(
            f"The run in {folder.name!r} is of another model: {len(odd)} tensors differ, first {odd[0]!r}. "
            "Choose another folder.",
            param="out",
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """`PARAMETER/exp_avg` and the like; the groups' settings are the recipe's and are not kept."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave. AdamW counts its steps on the CPU wherever the parameter is."""
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, part = key.rsplit("/", 1)
        if name not in parameters:
            raise InvalidRequest(
                f"The optimiser's state names {name!r}, which the model lacks. Choose another folder.", param="out"
            )
        parameter = parameters[name]
        optimizer.state[parameter][part] = tensor if part == "step" else tensor.to(parameter.device)


def save_course(
    folder: Path, recipe: Mapping[str, Any], step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """The whole state of a training that is its modules, one optimiser and the number of steps done."""
    parts: dict[str, Mapping[str, Tensor]] = {part: module.state_dict() for part, module in modules.items()}
    parts["optimizer"] = optimizer_tensors(optimizer, _parameters_of(modules))
    save_state(folder, recipe, {"step": step}, parts)


def resume_course(
    folder: Path, recipe: Mapping[str, Any], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> int:
    """Bring modules and optimiser to where `save_course` left them; returns the steps done, 0 where nothing was saved."""
    place = read_place(folder)
    if place is None:
        return 0
    check_recipe(folder, place["recipe"], recipe)
    for part, module in modules.items():
        tensors = read_part(folder, part)
        check_names(folder, tensors, module.state_dict())
        module.load_state_dict(tensors)
    load_optimizer(optimizer, _parameters_of(modules), read_part(folder, "optimizer"))
    return int(place["step"])


def _parameters_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{part}.{name}": held for part, module in modules.items() for name, held in module.named_parameters()}


def _differences(held: Any, own: Any, at: str = "") -> list[str]:
    """Dotted names of the values that differ between two records of plain values."""
    if isinstance(held, Mapping) and isinstance(own, Mapping):
        keys = sorted({*held, *own})
        return [name for key in keys for name in _differences(held.get(key), own.get(key), f"{at}{key}.")]
    return [] if held == own else [at.rstrip(".")]


def _partial(folder: Path, part: str) -> Path:
    return folder / f"{part}.safetensors.partial"


def _finish(folder: Path) -> None:
    """Bring the files of a state that was decided on to their places, where that was interrupted."""
    decided = folder / _DECIDED
    if not decided.is_file():
        return
    for part in json.loads(decided.read_text(encoding="utf-8"))["parts"]:
        if _partial(folder, part).is_file():
            _partial(folder, part).replace(folder / f"{part}.safetensors")
    decided.replace(folder / PLACE)
