"""How a decoder begins: random or lent weights, numbers that lie apart, and a projector that standardises its input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.decoder import Decoder
from foundation.errors import InvalidRequest
from training.pretraining.decoder.film_bank import FilmBank
from training.pretraining.decoder.recipe import DecoderRecipe

if TYPE_CHECKING:
    from foundation.backbone import Backbone

_ALIKE = 0.4  # mean cosine of a percentage's embedding with its nearest; directions at random have 0.2 at 256 wide


def new_decoder(backbone: Backbone, recipe: DecoderRecipe, tokenizer_file: Path, bank: FilmBank) -> Decoder:
    """Random weights, token embeddings from the text tower where they fit, and a projector that first standardises."""
    from foundation.prompt import PromptTokenizer

    torch.manual_seed(recipe.seed)
    shape = recipe.shape(backbone.width, PromptTokenizer(tokenizer_file).vocab_size)
    decoder = Decoder.create(shape, tokenizer_file)
    known = getattr(getattr(backbone.text_tower, "encoder", None), "token_embedding", None)
    table = decoder.model.get_input_embeddings().weight
    if known is not None and known.weight.shape == table.shape:
        known_words = known.weight.data.float().cpu()
        table.data.copy_(known_words * (0.02 / known_words.std()))
        table.data[:11].normal_(0, 0.02)  # special tokens mean nothing to the text tower
    spread_numbers(decoder)
    standardise_input(decoder, bank.tokens)
    return decoder


def take_language(decoder: Decoder, start: Path) -> None:
    """The language model of the checkpoint in `start`; its projector belongs to its own image tower."""
    taught = Decoder.load(start).model.state_dict()
    if {name: one.shape for name, one in taught.items()} != {n: one.shape for n, one in decoder.model.state_dict().items()}:
        raise InvalidRequest("The decoder to start from has another shape than the recipe's; leave `start` out.", param="start")
    decoder.model.load_state_dict(taught)
    spread_numbers(decoder)


def spread_numbers(decoder: Decoder) -> None:
    """Give each percentage, 0 to 100, an embedding of its own direction.

    The text tower has hardly met them: there 39 and 49 lie close together, and a decoder that starts from that mistakes one
    for the other when it copies. Those that are apart already are left as they are.
    """
    table = decoder.model.get_input_embeddings().weight
    ids = [pieces[0] for number in range(101) if len(pieces := decoder.tokenizer.encode_plain(str(number))) == 1]
    with torch.no_grad():
        own = F.normalize(table[ids], dim=1)
        nearest = (own @ own.T).fill_diagonal_(-1).max(dim=1).values
        if float(nearest.mean()) > _ALIKE:
            length = table.norm(dim=1).mean()
            table[ids] = F.normalize(torch.randn(len(ids), table.shape[1]), dim=1) * length


def standardise_input(decoder: Decoder, tokens: Tensor) -> None:
    """Fold the mean and deviation of each patch-token channel into the projector's first layer."""
    sample = tokens[:512].float().flatten(0, 1)
    mean, deviation = sample.mean(0), sample.std(0).clamp_min(1e-4)
    first = decoder.projector.linear_1
    with torch.no_grad():
        first.weight.normal_(0, first.in_features**-0.5).div_(deviation)
        first.bias.copy_(-first.weight @ mean)
