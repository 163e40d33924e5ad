"""The plain definition of LoRA on `nn.Linear`, slow and clear; every faster path is tested against it.

    y = base(x) + scale * B(A(x))        A: D_in -> R, B: R -> D_out
    scale = alpha / R                    or alpha / sqrt(R) with rank-stabilised scaling (rsLoRA)

`apply_lora` puts a `LoraLinear` in the place of each target of a tower, `remove_lora` puts the linear layers
back as they were. `LoraWeights` is the value that travels to `files.py` (disk) and `bank.py` (many adapters
in one batch). Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.errors import AdapterRefused, InvalidRequest


@dataclass(frozen=True)
class LoraSpec:
    """Which linear layers are adapted, by their full names inside the tower, and how strongly."""

    targets: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InvalidRequest(f"The LoRA rank must be at least 1, not {self.rank}.", param="rank")
        if not self.targets:
            raise InvalidRequest("LoRA needs at least one target layer; none was named.", param="targets")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The two factors on one layer: A (R, D_in) and B (D_out, R)."""

    A: Tensor
    B: Tensor


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A spec and its trained factors, one pair per target."""

    spec: LoraSpec
    pairs: Mapping[str, LoraPair] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        """True if every product B A is zero: an adapter that would leave the base as it is."""
        return not any(bool(pair.A.any()) and bool(pair.B.any()) for pair in self.pairs.values())


class LoraLinear(nn.Module):
    """`base(x) + scale * B(A(x))`, or `base(x)` alone while disabled; B starts at zero, so it starts as the base."""

    def __init__(self, base: nn.Linear, spec: LoraSpec) -> None:
        super().__init__()
        self.base = base
        self.scale = spec.scale
        self.is_enabled = True
        self.is_merged = False
        new = base.weight.new_zeros
        self.lora_A = nn.Parameter(new(spec.rank, base.in_features, dtype=torch.float32))
        self.lora_B = nn.Parameter(new(base.out_features, spec.rank, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def delta(self) -> Tensor:
        """What merging adds to the base weight: (D_out, D_in)."""
        return self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if self.is_merged or not self.is_enabled:
            return y
        low = F.linear(x.to(self.lora_A.dtype), self.lora_A)
        return y + (self.scale * F.linear(low, self.lora_B)).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        if not self.is_merged:
            self.base.weight += self.delta.to(self.base.weight.dtype)
            self.is_merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.is_merged:
            self.base.weight -= self.delta.to(self.base.weight.dtype)
            self.is_merged = False


def apply_lora(tower: nn.Module, spec: LoraSpec) -> dict[str, LoraLinear]:
    """Put a fresh `LoraLinear` in the place of every target; the base is frozen. Returns the layers by name."""
    linears = {name: find_linear(tower, name) for name in spec.targets}
    tower.requires_grad_(False)
    layers = {name: LoraLinear(linear, spec) for name, linear in linears.items()}
    for name, layer in layers.items():
        _set_child(tower, name, layer)
    return layers


def remove_lora(tower: nn.Module) -> None:
    """Put the base layers back, unmerged, as `apply_lora` found them."""
    for name, layer in lora_layers(tower).items():
        layer.unmerge()
        _set_child(tower, name, layer.base)


def lora_layers(tower: nn.Module) -> dict[str, LoraLinear]:
    return {name: module for name, module in tower.named_modules() if isinstance(module, LoraLinear)}


def read_weights(tower: nn.Module, spec: LoraSpec) -> LoraWeights:
    """Copy the factors out of an adapted tower, on the CPU in float32."""
    layers = lora_layers(tower)
    copy = {name: LoraPair(_plain(layers[name].lora_A), _plain(layers[name].lora_B)) for name in spec.targets}
    return LoraWeights(spec, copy)


@torch.no_grad()
def load_weights(tower: nn.Module, weights: LoraWeights) -> dict[str, LoraLinear]:
    """Apply `weights` to a tower that has no LoRA yet."""
    check_binding(tower, weights)
    layers = apply_lora(tower, weights.spec)
    for name, pair in weights.pairs.items():
        layers[name].lora_A.copy_(pair.A)
        layers[name].lora_B.copy_(pair.B)
    return layers


def check_binding(tower: nn.Module, weights: LoraWeights) -> None:
    """Refuse weights of which any tensor is missing or does not fit the tower."""
    missing = sorted(set(weights.spec.targets) ^ set(weights.pairs))
    if missing:
        raise AdapterRefused(f"The adapter's targets and tensors disagree about {', '.join(missing)}.")
    for name, pair in weights.pairs.items():
        linear = find_linear(tower, name)
        wanted = ((weights.spec.rank, linear.in_features), (linear.out_features, weights.spec.rank))
        if (tuple(pair.A.shape), tuple(pair.B.shape)) != wanted:
            raise AdapterRefused(
                f"The adapter's tensors for {name} have shapes {tuple(pair.A.shape)} and {tuple(pair.B.shape)}; "
                f"this base needs {wanted[0]} and {wanted[1]}."
            )


def find_linear(tower: nn.Module, name: str) -> nn.Linear:
    """The target layer called `name`; refuses a name that is absent or no linear layer."""
    try:
        module = tower.get_submodule(name)
    except AttributeError:
        raise AdapterRefused(f"The base has no layer {name!r} for this adapter; it was made for another base.") from None
    if not isinstance(module, nn.Linear):
        raise AdapterRefused(f"The layer {name!r} is a {type(module).__name__}; LoRA is defined here on linear layers.")
    return module


def blocks_of(targets: Sequence[str]) -> tuple[str, ...]:
    """The blocks behind target names, in order: `blocks.3.attn.qkv` and `blocks.3.conv1` lie in `blocks.3`."""
    return tuple(dict.fromkeys(map(_block_of, targets)))


def _block_of(target: str) -> str:
    """The name up to and with its last number, which is the block's."""
    parts = target.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else target.rpartition(".")[0]


def targets_from(targets: Sequence[str], first_block: int) -> tuple[str, ...]:
    """The targets in block `first_block` and above; negative numbers count from the last block."""
    blocks = blocks_of(targets)
    start = first_block if first_block >= 0 else len(blocks) + first_block
    if not 0 <= start < len(blocks):
        raise InvalidRequest(f"first_block is {first_block}, but this tower has {len(blocks)} blocks.", param="first_block")
    kept = set(blocks[start:])
    return tuple(target for target in targets if _block_of(target) in kept)


def _plain(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu", torch.float32, copy=True)


def _set_child(tower: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(tower.get_submodule(parent), leaf, child)
