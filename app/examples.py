"""The synthetic films on the first screen, named by what is drawn into them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from app.film import OpenFilm
from foundation.phantom import Phantom, PhantomFinding, make_phantom

THUMBNAIL_SIZE = 192


@dataclass(frozen=True)
class Example:
    """seed: the patient; findings empty for a normal film."""

    name: str
    seed: int
    findings: tuple[PhantomFinding, ...] = ()

    def phantom(self, size: int) -> Phantom:
        return make_phantom(self.seed, size, self.findings)

    def film(self, size: int) -> OpenFilm:
        """Drawn at the size the model sees, as the films it was trained on were."""
        return OpenFilm.of_phantom(self.phantom(size), self.name)


EXAMPLES = (
    Example("Effusion", 3, (PhantomFinding("effusion", "right", severity="large"),)),
    Example("Pneumothorax", 8, (PhantomFinding("pneumothorax", "left", severity="large"),)),
    Example("Consolidation", 12, (PhantomFinding("consolidation", "right", "upper", "large"),)),
    Example("Mass", 21, (PhantomFinding("mass", "left", "middle", "large"),)),
    Example("Enlarged heart", 5, (PhantomFinding("cardiomegaly", severity="large"),)),
    Example("Normal", 17),
)


@lru_cache(maxsize=1)
def thumbnails() -> tuple[tuple[object, str], ...]:
    """(picture (H, W) uint8, name) of every example."""
    return tuple((example.phantom(THUMBNAIL_SIZE).film, example.name) for example in EXAMPLES)
