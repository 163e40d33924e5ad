"""How the base looks at a film besides: at another size, or mirrored, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundation.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Look:
    """size: the side, in pixels, that the film is enlarged to; 0 is the tower's own. is_mirrored: left and right exchanged."""

    size: int = 0
    is_mirrored: bool = False

    def of(self, pixels: Tensor) -> Tensor:
        """Normalised films (B, 3, S, S) -> (B, 3, size, size), or (B, 3, S, S) where size is 0."""
        from foundation.enlarge import enlarge  # torch, which whoever only weighs looks does without

        shown = enlarge(pixels, self.size) if self.size else pixels
        return shown.flip(-1) if self.is_mirrored else shown

    def rows(self, side: int) -> float:
        """What it costs over a look at a film of the tower's own `side`: its patches over those."""
        return (self.size / side) ** 2 if self.size else 1.0

    def __str__(self) -> str:
        return f"{self.size}{'m' if self.is_mirrored else ''}"


AS_IT_IS = Look()


def further_looks(sizes: Sequence[int], is_mirrored: bool) -> tuple[Look, ...]:
    """At each of `sizes`; where mirrored, then also as it is and at each of them, left and right exchanged."""
    upright = tuple(Look(int(size)) for size in sizes)
    return upright + tuple(Look(one.size, True) for one in (AS_IT_IS, *upright) if is_mirrored)


def check_sizes(side_step: int, sizes: Sequence[int]) -> None:
    """Refuse sizes that a tower cannot be shown. side_step: what its sides are multiples of; 0 where it is bound to one."""
    if sizes and not side_step:
        raise InvalidRequest("This tower takes films of one size only; set head.sizes = [].", param="sizes")
    if odd := [size for size in sizes if size < side_step or size % side_step]:
        raise InvalidRequest(f"This tower takes sizes that are multiples of {side_step}, not {odd[0]}.", param="sizes")
