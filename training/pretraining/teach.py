"""Teach the decoder of a checkpoint anew, and write its passport.

    python -m training.pretraining.teach RECIPE FOLDER --start CHECKPOINT

The part `decoder` of `bundle.py` alone, for a checkpoint whose towers stand. Stopped, it goes on where it was saved; its
examination is printed and lies in the work folder as decoder_report.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from foundation.checkpoint import write_passport
from training.pretraining.bundle import BundleRecipe
from training.pretraining.decoder.instruct import train_decoder
from training.pretraining.start import decoder_folder
from training.recipe import read_recipe


def teach(recipe: str, folder: Path, start: str, work: Path, device: str = "auto") -> Path:
    """recipe: a name or TOML file, as for `vesalius pretrain`; start: a checkpoint whose decoder to go on from, or ""."""
    held = read_recipe(recipe, BundleRecipe)
    taught = decoder_folder(start or held.start)
    train_decoder(folder, held.decoder, manifest=Path(held.data.manifest), work=work, start=taught, device=device)
    write_passport(folder, held.licence)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the decoder of a checkpoint.")
    parser.add_argument("recipe", help="a recipe's name or TOML file")
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--start", default="", help="a checkpoint whose decoder to go on from")
    parser.add_argument("--work", type=Path, default=Path("runs/decoder"), help="where the state to resume from is kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    teach(chosen.recipe, chosen.folder, chosen.start, chosen.work, chosen.device)


if __name__ == "__main__":
    main()
