"""Writes a WordPiece tokenizer folder as open_clip and transformers read it; the text tower and the decoder share it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SPECIAL_TOKENS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[BOS]",
    "[EOS]",
    "<image>",
    "<user>",
    "<assistant>",
    "<findings>",
)


def write_tokenizer(tokens: Sequence[str], folder: Path, context_length: int) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt.

    `tokens` in id order, beginning with SPECIAL_TOKENS; pieces inside a word begin with "##". Text is lower-cased and
    put between [CLS] and [SEP].
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=60))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL_TOKENS[:5]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_length, **special}
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
