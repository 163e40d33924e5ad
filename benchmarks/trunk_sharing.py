"""One film under many adapters that begin in the upper half: the shared trunk against one forward each.

    python -m benchmarks.trunk_sharing                       the bundled tower and a 12-block ViT of 12.7 M at 224 px

Weights are random where the tower is not bundled: time does not depend on them. A B A B, medians of ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from adapters.bank import AdapterBank
from adapters.lora import LoraPair, LoraSpec, LoraWeights, targets_from
from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.preprocess import normalise
from serving.trunk import Trunk, Wanted, Way, first_block


def vit() -> Backbone:
    """A ViT of 12 blocks, 288 wide, 16-pixel patches at 224 pixels: 12.4 M weights."""
    import timm

    from foundation.preprocess import InputContract
    from foundation.towers.rewriting import image_tower

    trunk = timm.create_model(
        "vit_small_patch16_224", embed_dim=288, num_heads=6, depth=12, num_classes=0, class_token=False, global_pool="avg"
    )

    class Visual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = trunk, torch.nn.Linear(288, 256, bias=False)

    backbone: Any = object.__new__(Backbone)
    torch.nn.Module.__init__(backbone)
    backbone.image_tower = image_tower(Visual().eval())
    backbone.contract = InputContract(224, (0.5,) * 3, (0.25,) * 3)
    return backbone.eval().requires_grad_(False)  # type: ignore[no-any-return]


def weights(backbone: Backbone, first: int, rank: int = 8) -> LoraWeights:
    spec = LoraSpec(targets_from(backbone.lora_targets(), first), rank, 16.0)
    linears = {name: backbone.image_tower.get_submodule(name) for name in spec.targets}
    pairs = {
        name: LoraPair(0.02 * torch.randn(rank, linear.in_features), 0.02 * torch.randn(linear.out_features, rank))
        for name, linear in linears.items()
    }
    return LoraWeights(spec, pairs)


def measure(name: str, backbone: Backbone, first: int, adapters: int, rounds: int, dtype: torch.dtype) -> None:
    backbone.to(dtype)
    bank = AdapterBank(backbone)
    ways = []
    for _ in range(adapters):
        lora = weights(backbone, first)
        ways.append(Way(bank.install(lora), first_block(lora)))
    film = np.random.default_rng(0).integers(0, 256, (backbone.contract.size,) * 2 + (3,), dtype=np.uint8)
    trunk = Trunk(backbone, bank)
    pixels = torch.from_numpy(normalise(film, backbone.contract))[None]
    held = trunk.run([Wanted(film, tuple(ways))], keep=(first,)).states[0, first]

    @torch.inference_mode()
    def alone() -> None:
        for way in ways:
            with bank.rows([way.slot]):
                backbone.encode_image(pixels)

    @torch.inference_mode()
    def batched() -> None:
        with bank.rows([way.slot for way in ways]):
            backbone.encode_image(pixels.expand(adapters, -1, -1, -1))

    def shared() -> None:
        trunk.run([Wanted(film, tuple(ways))])

    def again() -> None:
        trunk.run([Wanted(film, tuple(ways), held, first)])

    runs: dict[str, Callable[[], None]] = {"forwards": alone, "one batch": batched, "shared": shared, "held": again}
    times: dict[str, list[float]] = {key: [] for key in runs}
    for key in runs:
        runs[key]()
    for _ in range(rounds):
        for key, run in runs.items():
            start = time.process_time()
            run()
            times[key].append(time.process_time() - start)
    ratios = {key: statistics.median(a / b for a, b in zip(times["forwards"], times[key], strict=True)) for key in runs}
    median = statistics.median(times["forwards"]) * 1000
    told = ", ".join(f"{key} {ratio:.2f} x" for key, ratio in ratios.items() if key != "forwards")
    print(f"{name}, {adapters} adapters from block {first}, {dtype}: {adapters} forwards {median:.0f} ms; {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bundled = open_checkpoint("bundled").backbone
    half = len(bundled.image_tower.blocks) // 2
    for first in sorted({half, len(bundled.image_tower.blocks) - 1}):
        measure("bundled", bundled, first, options.adapters, options.rounds, torch.float32)
    tower = vit()
    tower.encode_image = lambda pixels: tower.image_tower(pixels.to(tower.dtype))  # type: ignore[assignment,method-assign]
    tower.features = lambda output: output  # type: ignore[assignment,method-assign]
    for dtype in (torch.float32, torch.bfloat16):
        measure("ViT 12 blocks", tower, 6, options.adapters, options.rounds, dtype)


if __name__ == "__main__":
    main()
