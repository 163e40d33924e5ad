"""Gated attention over the films of a study, or the slices of a volume: several pictures, one answer (Ilse 2018).

    weight of film i  =  softmax over the study of  score . (tanh(V e_i) * sigmoid(U e_i))          e: embedding (B, E)
    logits of a study =  sum of weight_i * logits_i

The score starts at zero, so that before training a study's logits are the mean of its films'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StudyPool(nn.Module):
    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.value = nn.Linear(embed_dim, hidden)
        self.gate = nn.Linear(embed_dim, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    @property
    def hidden(self) -> int:
        return self.value.out_features

    def forward(self, embedding: Tensor, study: Tensor) -> Tensor:
        """embedding (B, E), study (B,): which study each film is of, from 0 on -> (B,) weights, adding up to 1 in each."""
        x = embedding.float()
        scores = self.score(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))[:, 0]  # (B,)
        count = int(study.max()) + 1
        top = scores.new_full((count,), -torch.inf).scatter_reduce(0, study, scores.detach(), "amax")
        share = (scores - top[study]).exp()
        weights: Tensor = share / scores.new_zeros(count).index_add(0, study, share)[study]
        return weights


def pool_studies(logits: Tensor, weights: Tensor, study: Tensor) -> Tensor:
    """(B, K) logits of films and their weights (B,) -> (number of studies, K)."""
    count = int(study.max()) + 1
    return logits.new_zeros(count, logits.shape[1]).index_add(0, study, weights[:, None] * logits)
