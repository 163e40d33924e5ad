"""The text tower's words: the teacher's WordPiece vocabulary trimmed to the corpus, and the embeddings they begin with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundation.wordpiece import SPECIAL_TOKENS, write_tokenizer
from training.pretraining.text.corpus import Sentence
from training.pretraining.text.recipe import TextRecipe
from training.pretraining.text.sentence_teacher import teacher_folder, teacher_tokenizer


def trim_vocabulary(sentences: Sequence[str], size: int) -> tuple[list[str], dict[str, list[str]]]:
    """(tokens in id order, word -> teacher pieces for words that became one token).

    Kept: specials, single characters, every piece the corpus needs, the corpus's long medical words whole, then the
    teacher's most frequent English words (its vocabulary is ordered by frequency).
    """
    teacher = teacher_tokenizer()
    words: Counter[str] = Counter()
    for text in sentences:
        normal = teacher.backend_tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in teacher.backend_tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    pieces = {word: teacher.tokenize(word) for word in words}
    whole = [w for w, n in words.most_common() if len(pieces[w]) > 1 and n >= 12 and w.isalpha()][:400]
    needed: Counter[str] = Counter()
    for word, count in words.items():
        needed.update(dict.fromkeys(pieces[word], count))
    order = sorted(teacher.get_vocab().items(), key=lambda item: item[1])
    letters = [token for token, _ in order if len(token.removeprefix("##")) == 1 and token.isascii()]
    frequent = [token for token, index in order if index > 1990 and token.isascii()]
    ranked = [*SPECIAL_TOKENS, *letters, *whole, *(t for t, n in needed.most_common() if n >= 2), *frequent]
    tokens = list(dict.fromkeys(token for token in ranked if token not in ("[unused0]",)))[:size]
    return tokens, {word: pieces[word] for word in whole if word in set(tokens)}


def prepare_tokenizer(recipe: TextRecipe, sentences: Sequence[Sentence], folder: Path) -> NDArray[np.float32]:
    """Writes the tokenizer if it is not there and returns the initial token embeddings (V, width)."""
    start = folder / "embeddings.safetensors"
    if not start.exists():
        tokens, merged = trim_vocabulary([sentence.text for sentence in sentences], recipe.vocab_size)
        write_tokenizer(tokens, folder, recipe.context_length)
        save_file({"token_embedding": torch.from_numpy(_initial_embeddings(tokens, merged, recipe.width))}, start)
    table: NDArray[np.float32] = load_file(start)["token_embedding"].numpy()
    return table


def _initial_embeddings(tokens: Sequence[str], merged: dict[str, list[str]], width: int) -> NDArray[np.float32]:
    """The teacher's word embeddings, whole words as the mean of their pieces, projected by PCA and scaled to 0.03."""
    weights = load_file(teacher_folder() / "model.safetensors")
    table = next(value for key, value in weights.items() if key.endswith("word_embeddings.weight")).float().numpy()
    index = teacher_tokenizer().get_vocab()
    rows = np.stack(
        [
            np.mean([table[index[p]] for p in merged.get(token, [token])], axis=0)
            if token in index or token in merged
            else np.zeros(table.shape[1])
            for token in tokens
        ]
    )
    centred = rows - rows.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:width].T
    scaled: NDArray[np.float32] = (projected * (0.03 / projected.std())).astype(np.float32)
    return scaled


def encode_ids(folder: Path, texts: Sequence[str], context_length: int) -> Tensor:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=context_length, return_tensors="np")
    return torch.from_numpy(encoded["input_ids"].astype(np.int32))
