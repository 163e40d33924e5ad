"""The decoder's course: the loss lies on answers alone, it learns, and stopping changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foundation.decoder import Decoder
from foundation.errors import InvalidRequest
from foundation.tiny_decoder import make_tiny_decoder
from training.pretraining.decoder.exam import examine
from training.pretraining.decoder.film_bank import FilmBank
from training.pretraining.decoder.instruct import Teacher
from training.pretraining.decoder.lessons import answer_logits, write_lesson
from training.pretraining.decoder.recipe import DecoderRecipe
from training.pretraining.decoder.start import spread_numbers, standardise_input

RECIPE = DecoderRecipe(steps=8, batch=3, turns=2, length=4000, warmup_steps=2, learning_rate=5e-3)


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    return make_tiny_decoder(tmp_path / "start", image_width=6)


@pytest.fixture(scope="module")
def bank() -> FilmBank:
    tokens = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)).half() * 7 + 3
    return FilmBank(tokens, (("effusion",), (), ("mass",), (), ("effusion",)))


def quiet(_: str) -> None:
    """No progress in tests."""


def test_only_answers_are_learned(decoder: Decoder, bank: FilmBank) -> None:
    lesson = write_lesson(decoder, bank, RECIPE, 0)
    special = decoder.tokenizer.special_ids
    for ids, is_answer in zip(lesson.ids, lesson.is_answer, strict=True):
        answers = ids[is_answer].tolist()
        assert answers.count(special["[EOS]"]) == RECIPE.turns
        before = ids[:-1][is_answer[1:] & ~is_answer[:-1]].tolist()
        assert before == [special["<assistant>"]] * RECIPE.turns
        assert not set(answers) & {special["<user>"], special["<image>"], special["<findings>"], special["[PAD]"]}


def test_a_lesson_depends_on_its_step_alone(decoder: Decoder, bank: FilmBank) -> None:
    first, again = (write_lesson(decoder, bank, RECIPE, 3) for _ in range(2))
    assert torch.equal(first.ids, again.ids)
    other = write_lesson(decoder, bank, RECIPE, 4)
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)


def test_training_sees_what_generation_sees(decoder: Decoder, bank: FilmBank) -> None:
    """The logits of a lesson's first answer are those of the prompt the server would build."""
    lesson = write_lesson(decoder, bank, RECIPE, 0)
    with torch.inference_mode():
        logits, _ = answer_logits(decoder, lesson)
        start = int(lesson.is_answer[0].nonzero()[0])
        embedded = decoder.embed(lesson.ids[0, :start].tolist(), lesson.tokens[0].float())
        alone = decoder.model(inputs_embeds=embedded).logits[0, -1]
    torch.testing.assert_close(logits[0], alone, atol=1e-4, rtol=0)


def test_every_weight_gets_a_gradient_and_the_loss_falls(decoder: Decoder, bank: FilmBank, tmp_path: Path) -> None:
    recipe = DecoderRecipe(steps=30, batch=3, turns=2, length=4000, warmup_steps=2, learning_rate=5e-3)
    teacher = Teacher(decoder, recipe, bank, (), tmp_path, quiet)
    losses = [teacher._step() for _ in range(1)]
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in decoder.parameters())
    for _ in range(25):
        losses.append(teacher._step())  # the same lesson, since the step does not move
    assert losses[-1] < 0.7 * losses[0]


def test_a_resumed_course_ends_with_the_same_weights(bank: FilmBank, tmp_path: Path) -> None:
    def course(name: str, stops: list[int]) -> dict[str, torch.Tensor]:
        for stop in stops:
            learner = make_tiny_decoder(tmp_path / name, image_width=6)
            teacher = Teacher(learner, RECIPE, bank, (), tmp_path / name, quiet)
            teacher.train(stop)
        return learner.state_dict()

    whole, parts = course("whole", [8]), course("parts", [3, 8])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(InvalidRequest, match="another recipe"):
        Teacher(make_tiny_decoder(tmp_path / "new", 6), DecoderRecipe(steps=9), bank, (), tmp_path / "parts", quiet)


def test_the_examination_counts_whole_answers(decoder: Decoder, bank: FilmBank) -> None:
    report = examine(decoder, bank, RECIPE)
    assert report["answers"] == 4 * len(bank)
    assert report["word for word"] == 0  # it babbles
    assert report["findings"] == 0


def test_lessons_are_cut_between_turns(decoder: Decoder, bank: FilmBank) -> None:
    whole, cut = (write_lesson(decoder, bank, replace(RECIPE, turns=6, length=length), 0) for length in (4000, 350))
    assert cut.ids.shape[1] < whole.ids.shape[1]
    for long, short in zip(whole.ids, cut.ids, strict=True):
        kept = short[short != decoder.tokenizer.special_ids["[PAD]"]].tolist()
        assert long[: len(kept)].tolist() == kept
        assert kept[-1] == decoder.end_id


def test_percentages_that_were_alike_are_told_apart(decoder: Decoder) -> None:
    table = decoder.model.get_input_embeddings().weight
    digits = [decoder.tokenizer.encode_plain(str(number))[0] for number in range(10)]
    table.data[digits] = 1.0
    spread_numbers(decoder)
    own = table[digits].detach()
    alike = F.cosine_similarity(own[:, None], own[None], dim=-1)
    assert float((alike - torch.eye(10)).abs().max()) < 0.8


def test_the_projector_starts_on_standardised_tokens(decoder: Decoder, bank: FilmBank) -> None:
    standardise_input(decoder, bank.tokens)
    with torch.inference_mode():
        hidden = decoder.projector.linear_1(bank.tokens.float()).flatten(0, 1)
    assert float(hidden.mean().abs()) < 0.3
    assert 0.5 < float(hidden.std()) < 2.0


def test_recipes_name_what_is_wrong() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        DecoderRecipe(batch=0)
    assert refusal.value.param == "batch"
