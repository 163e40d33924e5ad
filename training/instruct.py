"""Teaches the decoder to say what is stated, exactly, and to say so where nothing is stated.

    frozen image tower -> patch tokens of phantoms and training films, once, in float16 memory
    conversations.py   -> questions and true answers, fresh in every step
    loss               -> the answers' tokens alone

The run is a pure function of recipe and checkpoint: each step draws from its own random stream, so a resumed run writes
the same conversations as one that never stopped. Progress goes to `log` and
to tensorboard in the work folder.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.decoder import Decoder, DecoderShape
from foundation.errors import CheckpointRefused, InvalidRequest, ManifestError
from foundation.lexicon import FINDINGS
from foundation.prompt import Turn, findings_text
from foundation.questions import interpret_question
from training import resume
from training.agreement import agreement
from training.conversations import FilmFacts, conversation, draw_facts
from training.corpus import training_rows

if TYPE_CHECKING:
    from foundation.backbone import Backbone

Log = Callable[[str], None]
_ALIKE = 0.4  # mean cosine of a percentage's embedding with its nearest; directions at random have 0.2 at 256 wide
_HELD_OUT_SEED = 9_000_000  # phantoms from here on are never trained on


@dataclass(frozen=True)
class DecoderRecipe:
    """How the decoder is built and taught.

    turns, length: at most, of one conversation; length in words and marks, without the film's patch tokens.
    """

    width: int = 256
    layers: int = 6
    heads: int = 4
    key_value_heads: int = 2
    mlp_width: int = 512
    context: int = 1024
    phantoms: int = 5000
    films: int = 2000
    held_out: int = 200
    steps: int = 1500
    batch: int = 20
    turns: int = 7
    length: int = 300
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 80
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("phantoms", "held_out", "steps", "batch", "turns", "length"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; give 1 or more.", param=name)

    def shape(self, image_width: int, vocab_size: int) -> DecoderShape:
        return DecoderShape(
            image_width,
            vocab_size,
            self.width,
            self.layers,
            self.heads,
            self.key_value_heads,
            self.mlp_width,
            self.context,
        )


@dataclass(frozen=True, eq=False)
class FilmBank:
    """Patch tokens (F, N, D) float16 and each film's true findings."""

    tokens: Tensor
    labels: tuple[tuple[str, ...], ...]

    def facts(self, index: int, rng: random.Random) -> FilmFacts:
        return draw_facts(rng, self.labels[index])

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Lesson:
    """Sequences ready for the model: ids (B, T), where answers are to be learned (B, T), patch tokens (B, N, D)."""

    ids: Tensor
    is_answer: Tensor
    tokens: Tensor


def train_decoder(
    folder: Path,
    recipe: DecoderRecipe,
    *,
    manifest: Path | None = None,
    work: Path | None = None,
    start: Path | None = None,
    max_steps: int | None = None,
    log: Log = print,
) -> Path:
    """Teach a decoder for the checkpoint in `folder` and save it there (`decoder/`, projector); returns the folder.

    `manifest` adds real training films and people's questions; without it the lessons are phantoms only. `work` keeps
    the state to resume from. `start` is a folder whose decoder, taught with another image tower, lends its language
    model; the projector begins anew.
    """
    from foundation.checkpoint import open_checkpoint

    work = work or folder / ".instruct"
    work.mkdir(parents=True, exist_ok=True)
    backbone = open_checkpoint(str(folder)).backbone
    bank = _bank(backbone, recipe, manifest, work, log)
    tested = phantom_bank(backbone, recipe.held_out, _HELD_OUT_SEED)
    decoder = _new_decoder(backbone, recipe, folder / "tokenizer.json", bank)
    if start is not None:
        _take_language(decoder, start)
    teacher = Teacher(decoder, recipe, bank, people_questions(manifest), work, log)
    teacher.train(max_steps or recipe.steps)
    decoder.save(folder)
    report = examine(decoder, tested, recipe)
    (work / "decoder_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    log(f"decoder: {report}")
    return folder


class Teacher:
    """Decoder, optimiser and their place in the course."""

    def __init__(
        self, decoder: Decoder, recipe: DecoderRecipe, bank: FilmBank, questions: Sequence[str], work: Path, log: Log
    ) -> None:
        self.decoder, self.recipe, self.bank, self.questions = decoder, recipe, bank, questions
        self.work, self.state, self.log = work, work / "decoder_state", log
        self._modules = {"decoder": decoder}
        matrices = [p for p in decoder.parameters() if p.ndim > 1]
        vectors = [p for p in decoder.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.step = resume.resume_course(self.state, self._course(), self._modules, self.optimiser)
        if self.step:
            self.log(f"decoder: going on from step {self.step}")

    def train(self, until: int) -> None:
        """Steps up to `until`; the learning rate follows the whole recipe."""
        began, first = time.monotonic(), self.step
        board = _tensorboard(self.work)
        self.decoder.train()
        while self.step < until:
            loss = self._step()
            self.step += 1
            if board:
                board.add_scalar("decoder/loss", loss, self.step)
            if self.step % 25 == 0 or self.step == until:
                pace = (time.monotonic() - began) / (self.step - first)
                left = pace * (until - self.step)
                self.log(f"decoder step {self.step}/{self.recipe.steps} loss {loss:.4f} ({left:.0f} s left)")
            if self.step % 100 == 0 or self.step == until:
                resume.save_course(self.state, self._course(), self.step, self._modules, self.optimiser)
        self.decoder.eval()
        if board:
            board.close()

    def _step(self) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        lesson = write_lesson(self.decoder, self.bank, self.recipe, self.step, self.questions)
        with torch.autocast("cpu", torch.bfloat16):
            logits, targets = answer_logits(self.decoder, lesson)
        loss = F.cross_entropy(logits.float(), targets)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimiser.step()
        return float(loss.detach())

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.recipe.steps)))
        return self.recipe.learning_rate * warm * (0.03 + 0.97 * fall)

    def _course(self) -> dict[str, Any]:
        """What a resumed course must share with the one that was stopped."""
        return {**asdict(self.recipe), "film tokens": list(self.bank.tokens.shape), "questions": len(self.questions)}


def write_lesson(decoder: Decoder, bank: FilmBank, recipe: DecoderRecipe, step: int, questions: Sequence[str] = ()) -> Lesson:
    """The conversations of one step; the same step is always the same lesson."""
    rng = random.Random(recipe.seed * 1_000_003 + step)
    dialogues = []
    for _ in range(recipe.batch):
        row = rng.randrange(len(bank))
        facts = bank.facts(row, rng)
        dialogues.append((row, facts, conversation(rng, facts, recipe.turns, questions)))
    return lesson_of(decoder, bank, dialogues, recipe.length)


Dialogue = tuple[int, FilmFacts, Sequence[tuple[Turn, Turn]]]
"""The film's place in the bank, what is stated of it, and questions with their answers."""


def lesson_of(decoder: Decoder, bank: FilmBank, dialogues: Sequence[Dialogue], length: int | None = None) -> Lesson:
    """Tokenise dialogues about films of the bank, padded to the longest.

    Each ends before the turn that would make it longer than `length` words and marks, so that little of a batch is padding.
    """
    image_tokens = bank.tokens.shape[1]
    rows = [_sequence(decoder, facts, pairs, image_tokens, length) for _, facts, pairs in dialogues]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), decoder.tokenizer.special_ids["[PAD]"])
    is_answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (tokens, answers) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_answer[row, : len(tokens)] = torch.tensor(answers)
    return Lesson(ids, is_answer, bank.tokens[[index for index, _, _ in dialogues]])


def _sequence(
    decoder: Decoder, facts: FilmFacts, pairs: Sequence[tuple[Turn, Turn]], image_tokens: int, length: int | None
) -> tuple[list[int], list[bool]]:
    """(ids, which of them are answers): the prompt the server would build before the last answer, then that answer."""
    with_hints = sum(len(asked.text) for asked, _ in pairs) % 7 != 0  # one dialogue in seven goes without
    *earlier, (asked, answered) = pairs
    turns = [turn for pair in earlier for turn in pair] + [asked]
    ids = decoder.tokenizer.prompt(turns, findings_text(facts.stated), image_tokens, with_hints=with_hints)
    ids += [*decoder.tokenizer.encode_plain(answered.text), decoder.end_id]
    ends = [place + 1 for place, token in enumerate(ids) if token == decoder.end_id]
    fitting = [end for end in ends if length is None or end <= length + image_tokens]
    ids = ids[: max(fitting, default=ends[0])]
    return ids, _are_answers(decoder, ids)


def _are_answers(decoder: Decoder, ids: Sequence[int]) -> list[bool]:
    """True behind each <assistant> up to its [EOS]: what people say never holds either mark."""
    begin, is_answer, inside = decoder.tokenizer.special_ids["<assistant>"], [], False
    for token in ids:
        is_answer.append(inside)
        inside = token == begin or (inside and token != decoder.end_id)
    return is_answer


def answer_logits(decoder: Decoder, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """(logits (A, V), target ids (A,)) of all answer tokens of the lesson, row by row."""
    embedded = decoder.model.get_input_embeddings()(lesson.ids)
    is_image = lesson.ids == decoder.image_id
    projected = decoder.projector(lesson.tokens.float())
    embedded = embedded.masked_scatter(is_image[..., None], projected.to(embedded.dtype))
    hidden = decoder.model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    said = lesson.is_answer[:, 1:]
    return decoder.model.lm_head(hidden[:, :-1][said]), lesson.ids[:, 1:][said]


@torch.inference_mode()
def examine(decoder: Decoder, bank: FilmBank, recipe: DecoderRecipe) -> dict[str, float]:
    """What greedy answers on films never seen are worth, as shares of the answers each is about.

    word for word: the answer taught, by kind of question. verdict, findings, percents, places: what the answer claims agrees
    with what was stated (`agreement.py`). Most answers are seen to be right in one forward; only the others are written out.
    """
    decoder.eval()
    tally = Tally()
    for number, start in enumerate(range(0, len(bank), recipe.batch)):
        rng = random.Random(77_000 + number)
        dialogues = []
        for row in range(start, min(start + recipe.batch, len(bank))):
            facts = bank.facts(row, rng)
            dialogues.append((row, facts, conversation(rng, facts, 4)))
        lesson = lesson_of(decoder, bank, dialogues)
        logits, targets = answer_logits(decoder, lesson)
        verdicts = iter(_whole_answers(logits.argmax(1) == targets, targets, decoder.end_id))
        for row, facts, pairs in dialogues:
            _mark_dialogue(decoder, bank.tokens[row].float(), facts, pairs, verdicts, tally)
    return tally.shares()


class Tally:
    """How many answers were right, under each name, of how many."""

    def __init__(self) -> None:
        self.asked, self.right = Counter[str](), Counter[str]()

    def add(self, name: str, is_right: bool | None) -> None:
        if is_right is not None:
            self.asked[name] += 1
            self.right[name] += is_right

    def shares(self) -> dict[str, float]:
        named = {name: round(self.right[name] / count, 4) for name, count in sorted(self.asked.items())}
        return {**named, "answers": self.asked["word for word"]}


def _mark_dialogue(
    decoder: Decoder,
    tokens: Tensor,
    facts: FilmFacts,
    pairs: Sequence[tuple[Turn, Turn]],
    verdicts: Iterator[bool],
    tally: Tally,
) -> None:
    turns: list[Turn] = []
    for asked, answered in pairs:
        earlier = [turn.text for turn in turns if turn.role == "user"]
        is_same = next(verdicts)
        tally.add("word for word", is_same)
        tally.add(f"word for word, {interpret_question(asked.text, earlier).kind}", is_same)
        turns.append(asked)
        said = answered.text if is_same else decoder.generate(turns, facts.stated, tokens).text
        found = agreement(asked.text, earlier, said, facts.stated or ()) if facts.stated is not None else None
        turns.append(answered)
        for name in ("verdict", "findings", "percents", "places") if found else ():
            tally.add(name, getattr(found, name))
            if found and found.kind == "describe":
                tally.add(f"{name}, describe", getattr(found, name))


def _whole_answers(is_right: Tensor, targets: Tensor, end_id: int) -> list[bool]:
    """One verdict an answer; answers lie one behind the other, each ending with `end_id`."""
    verdicts, begin = [], 0
    for end in (targets == end_id).nonzero().flatten().tolist():
        verdicts.append(bool(is_right[begin : end + 1].all()))
        begin = end + 1
    return verdicts


# Films and their features


def _bank(backbone: Backbone, recipe: DecoderRecipe, manifest: Path | None, work: Path, log: Log) -> FilmBank:
    began = time.monotonic()
    banks = [phantom_bank(backbone, recipe.phantoms, recipe.seed * 100_000)]
    if manifest is not None and recipe.films:
        banks.append(film_bank(backbone, manifest, recipe.films, recipe.seed))
    bank = FilmBank(
        torch.cat([part.tokens for part in banks]),
        tuple(item for part in banks for item in part.labels),
    )
    log(f"decoder: patch tokens {tuple(bank.tokens.shape)} in {time.monotonic() - began:.0f} s")
    return bank


def phantom_bank(backbone: Backbone, count: int, first_seed: int) -> FilmBank:
    """Phantoms `first_seed` .. and what they show; devices, which the decoder does not speak of, are left out."""
    from foundation.phantom import make_phantom

    films, labels = [], []
    for seed in range(first_seed, first_seed + count):
        phantom = make_phantom(seed, backbone.contract.size)
        films.append(np.repeat(phantom.film[..., None], 3, axis=2))
        labels.append(tuple(one.name for one in phantom.findings if one.name in FINDINGS))
    return FilmBank(encode_films(backbone, films), tuple(labels))


def film_bank(backbone: Backbone, manifest: Path, count: int, seed: int) -> FilmBank:
    """Real training films whose findings are labelled, those with a finding first, in an order of the seed."""
    from foundation.preprocess import render
    from foundation.readers import read_film

    rows = [row for row in training_rows(manifest) if row["source"] == "nih_cxr14"]
    if not rows:
        raise ManifestError(f"{manifest.name} has no training row of nih_cxr14; train without a manifest.")
    random.Random(seed).shuffle(rows)
    rows.sort(key=lambda row: row["labels"] == ["normal"])
    split = min(len(rows), round(count * 0.8))
    chosen = rows[:split] + rows[len(rows) - (count - split) :] if count < len(rows) else rows
    films, labels = [], []
    for row in chosen:
        data = (manifest.parent / str(row["image"])).read_bytes()
        films.append(render(read_film(data), backbone.contract))
        labels.append(tuple(str(label) for label in cast(list[str], row["labels"]) if label in FINDINGS))
    return FilmBank(encode_films(backbone, films), tuple(labels))


@torch.inference_mode()
def encode_films(backbone: Backbone, films: Sequence[Any], batch: int = 32) -> Tensor:
    """Films (S, S, 3) uint8 -> patch tokens (F, N, D) float16."""
    from foundation.preprocess import normalise

    parts = []
    for start in range(0, len(films), batch):
        pixels = np.stack([normalise(film, backbone.contract) for film in films[start : start + batch]])
        parts.append(backbone.encode_image(torch.from_numpy(pixels)).tokens.half())
    tokens = torch.cat(parts)
    if not bool(torch.isfinite(tokens).all()):
        raise CheckpointRefused("The image tower's patch tokens overflow float16: it has not been trained soundly.")
    return tokens


def people_questions(manifest: Path | None) -> tuple[str, ...]:
    """What clinicians asked of chest films (vqa_rad, training rows): phrasings only, their answers are not used."""
    if manifest is None:
        return ()
    asked = {
        str(item["question"]).strip()
        for row in training_rows(manifest)
        if row["source"] == "vqa_rad"
        for item in cast(list[dict[str, str]], row.get("qa") or [])
    }
    return tuple(sorted(text for text in asked if len(text) < 90))


def _new_decoder(backbone: Backbone, recipe: DecoderRecipe, tokenizer_file: Path, bank: FilmBank) -> Decoder:
    """Random weights, token embeddings from the text tower where they fit, and a projector that first standardises."""
    from foundation.prompt import PromptTokenizer

    torch.manual_seed(recipe.seed)
    shape = recipe.shape(backbone.width, PromptTokenizer(tokenizer_file).vocab_size)
    decoder = Decoder.create(shape, tokenizer_file)
    known = getattr(getattr(backbone.text_tower, "encoder", None), "token_embedding", None)
    table = decoder.model.get_input_embeddings().weight
    if known is not None and known.weight.shape == table.shape:
        table.data.copy_(known.weight.data.float() * (0.02 / known.weight.float().std()))
        table.data[:11].normal_(0, 0.02)  # special tokens mean nothing to the text tower
    spread_numbers(decoder)
    standardise_input(decoder, bank.tokens)
    return decoder


def _take_language(decoder: Decoder, start: Path) -> None:
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


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
