"""Free words for what a film shows: which classes a phrase means, and phrases for what no mask speaks of.

    Phrase   words "both lungs", "the lungs" ...   classes right lung field + left lung field
             words "heart", "liver" ...            no class: nothing is to be drawn

Training draws one wording of some phrases in the place of the classes; one wording in `HELD` of each phrase is kept for
the report, which so asks in words never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapters.tasks.classification import EncodesText
from foundation.errors import InvalidRequest

HELD = 4
ASKED = 4  # phrases in the place of classes, of which one means nothing where there are such


@dataclass(frozen=True)
class Phrase:
    """words: wordings of one meaning. classes: those it means together; none: what is not to be found in any film."""

    words: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def taught(self) -> tuple[str, ...]:
        return tuple(word for place, word in enumerate(self.words) if (place + 1) % HELD)

    @property
    def held(self) -> tuple[str, ...]:
        return self.words[HELD - 1 :: HELD]


def check_phrases(phrases: Sequence[Phrase], classes: Sequence[str]) -> None:
    """Every phrase has words, and means classes that there are."""
    odd = sorted({name for phrase in phrases for name in phrase.classes} - set(classes))
    if odd:
        raise InvalidRequest(f"head.phrases name classes that data.masks do not hold: {', '.join(odd)}.", param="phrases")
    if not all(phrase.words for phrase in phrases):
        raise InvalidRequest("head.phrases: give every phrase at least one wording in `words`.", param="phrases")


class SpokenPhrases:
    """The phrases' embeddings, computed once, and random questions made of them."""

    def __init__(self, backbone: EncodesText, phrases: Sequence[Phrase], classes: Sequence[str]) -> None:
        check_phrases(phrases, classes)
        self.meant = [[classes.index(name) for name in phrase.classes] for phrase in phrases]
        with torch.no_grad():
            self.embeddings = [backbone.encode_text(list(phrase.taught)).float().cpu() for phrase in phrases]
        self.something = [place for place, meant in enumerate(self.meant) if meant]
        self.nothing = [place for place, meant in enumerate(self.meant) if not meant]

    def draw(self, target: Tensor, known: Tensor, random: np.random.Generator) -> dict[str, Tensor]:
        """target (B, K, h, w) and known (B, K) of classes -> `phrases` (Q, E), and target and known of those."""
        chosen = random.permutation(self.something)[: ASKED - 1].tolist()
        chosen += random.permutation(self.nothing)[: ASKED - len(chosen)].tolist()[:1]
        embeddings, targets, knowns = [], [], []
        for place in chosen:
            wordings, meant = self.embeddings[place], self.meant[place]
            embeddings.append(wordings[int(random.integers(len(wordings)))])
            targets.append(target[:, meant].amax(dim=1) if meant else torch.zeros_like(target[:, 0]))
            knowns.append(known[:, meant].all(dim=1) if meant else torch.ones_like(known[:, 0]))
        return {"phrases": torch.stack(embeddings), "target": torch.stack(targets, 1), "known": torch.stack(knowns, 1)}
