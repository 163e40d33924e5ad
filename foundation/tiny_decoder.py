"""A tiny random decoder, for tests and for trying things out; it babbles."""

from __future__ import annotations

from pathlib import Path

import torch

from foundation.decoder import Decoder, DecoderShape
from foundation.lexicon import FINDINGS
from foundation.wordpiece import SPECIAL_TOKENS, write_tokenizer

_WORDS = (
    "yes no there is a an the film shows normal not looks where which side on in left right both lower upper zone "
    "small large present absent presence absence location severity describe other assessed pleural lung pulmonary heart "
    "% : ? , . ( ) ;"
)


def tiny_vocabulary() -> list[str]:
    """Specials, a few words, the findings, and characters enough to spell anything."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    findings = [word for name in FINDINGS for word in name.split()]
    pieces = [*SPECIAL_TOKENS, *_WORDS.split(), *findings, *characters, *(f"##{one}" for one in characters)]
    return list(dict.fromkeys(pieces))


def make_tiny_decoder(folder: Path, image_width: int = 384, *, seed: int = 0) -> Decoder:
    """Write `decoder/` and the projector into `folder` (a checkpoint's, for instance); the same seed, the same weights."""
    tokens = tiny_vocabulary()
    source = folder / "decoder"
    write_tokenizer(tokens, source, 1024)
    shape = DecoderShape(image_width, len(tokens), width=32, layers=2, heads=2, key_value_heads=1, mlp_width=48)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder.create(shape, source / "tokenizer.json")
        for parameter in decoder.parameters():  # wide enough that pictures and prompts change the answer
            torch.nn.init.normal_(parameter, 0.02 if parameter.ndim > 1 else 1.0, 0.3 if parameter.ndim > 1 else 0.1)
    decoder.save(folder, dtype=torch.float32)
    return Decoder.load(folder)
