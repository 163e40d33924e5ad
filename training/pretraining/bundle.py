"""From a recipe to a checkpoint folder that can be served: the whole course, each part resumable.

    language     text tower distilled from a sentence encoder     text/language.py      -> the recipe's text_folder
                 (with `start`: that checkpoint's own)            start.py
    towers       films and sentences, stage by stage              pretrain.py           -> OUT/learner.safetensors
    assemble     open_clip's own layout                           assemble.py           -> OUT/checkpoint
    gate         which films the model knows                      training/trust/gate.py  -> OUT/checkpoint/gate.safetensors
    decoder      the language model that answers                  decoder/instruct.py   -> OUT/checkpoint/decoder
    passport     what the folder is, by which it is checked

What is finished is found again by its files; what was stopped goes on where it was saved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from foundation.checkpoint import open_checkpoint, write_passport
from training.pretraining.assemble import assemble
from training.pretraining.decoder.instruct import train_decoder
from training.pretraining.decoder.recipe import DecoderRecipe
from training.pretraining.pretrain import Pretraining
from training.pretraining.recipe import PretrainRecipe
from training.pretraining.stage_log import read_stages
from training.pretraining.start import decoder_folder, take_text_tower
from training.pretraining.text.language import distil_text_tower
from training.pretraining.text.recipe import TextRecipe
from training.recipe import read_recipe
from training.trust.gate import GateRecipe, fit_checkpoint_gate

Log = Callable[[str], None]


@dataclass(frozen=True)
class BundleRecipe(PretrainRecipe):
    """Everything a checkpoint is made of; the towers' recipe and beside it the text tower's, the gate's, the decoder's."""

    licence: str = "Apache-2.0"
    text: TextRecipe = field(default_factory=TextRecipe)
    gate: GateRecipe = field(default_factory=GateRecipe)
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)


def pretrain(recipe: str, out: Path | None = None, log: Log = print, device: str = "auto") -> Path:
    """Run, or go on with, the recipe of that name or file; returns the checkpoint's folder.

    device: where towers and decoder are trained ("auto": the first CUDA device where there is one).
    """
    held = read_recipe(recipe, BundleRecipe)
    run = out or Path(held.out)
    manifest, text_folder = Path(held.data.manifest), Path(held.model.text_folder)
    seconds: dict[str, float] = {}

    def part(name: str, work: Callable[[], object]) -> None:
        log(f"part: {name}")
        began = time.monotonic()
        work()
        seconds[name] = round(time.monotonic() - began, 1)

    folder = run / "checkpoint"
    if held.start:
        part("language", lambda: take_text_tower(held.start, text_folder))
    else:
        part("language", lambda: distil_text_tower(held.text, text_folder, manifest=manifest, log=log))
    part("towers", lambda: Pretraining(held, run, device).run())
    part("assemble", lambda: assemble(held.model, run, folder))
    part("gate", lambda: fit_checkpoint_gate(folder, manifest, held.data.licence_classes, held.gate, log))
    taught = decoder_folder(held.start)
    part(
        "decoder",
        lambda: train_decoder(
            folder, held.decoder, manifest=manifest, work=run / "decoder", start=taught, log=log, device=device
        ),
    )
    write_passport(folder, held.licence)
    _report(run, held, seconds)
    return folder


def _report(run: Path, recipe: BundleRecipe, seconds: dict[str, float]) -> None:
    """OUT/report.json and report.md: how long each part took, what validation said after each stage, what came out."""
    stages = read_stages(run)
    passport = json.loads(open_checkpoint(run / "checkpoint").passport.to_json())
    told = {"recipe": recipe.name, "seconds": seconds, "stages": stages, "passport": passport}
    (run / "report.json").write_text(json.dumps(told, indent=2) + "\n")
    lines = [f"# Pretraining {recipe.name}", "", "| part | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in seconds.items()]
    for stage in stages:
        lines += ["", f"## {stage['stage']['name']}, {stage['stage']['films']} films, {stage['seconds']:.0f} s", ""]
        lines += ["| validation AUROC | |", "|---|---|", *(f"| {k} | {v:.3f} |" for k, v in stage["val"].items())]
    (run / "report.md").write_text("\n".join(lines) + "\n")
