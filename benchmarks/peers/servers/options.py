"""What every peer is started with."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    checkpoint: str
    port: int
    batch: int
    precision: str

    @classmethod
    def from_command(cls) -> Options:
        parser = argparse.ArgumentParser()
        parser.add_argument("--checkpoint", required=True)
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--batch", type=int, default=16, help="the most films in one forward; 1 for no batching")
        parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
        return cls(**vars(parser.parse_args()))
