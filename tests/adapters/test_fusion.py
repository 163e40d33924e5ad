"""The fusion head: what is absent changes nothing, the account adds up, and wrong tables are refused by name."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from adapters.card import AdapterCard, BaseRecord, Conformal
from adapters.tasks.account import shapley, subsets_of
from adapters.tasks.fusion import FusionPredictor, SubsetRule, sigmoid
from adapters.tasks.fusion_head import JOINT, PRODUCT, FusionHead, FusionInputs, HeadShape
from adapters.tasks.tabular import TabularField
from foundation.errors import AdapterRefused, InvalidRequest

SHAPE = HeadShape(embed_dim=8, token_width=6, level_width=5, film=4, patch=3, note=3, width=8, members=2)
MODALITIES = ("film", "note", "laboratory", "patient")
FIELDS = (
    TabularField("crp", "laboratory", unit="mg/L", low=0.0, high=1000.0, seen_low=1.0, seen_high=300.0),
    TabularField("ldh", "laboratory", unit="U/L", low=0.0),
    TabularField("sex", "patient", kind="category", categories=("F", "M")),
    TabularField("age", "patient", unit="years", low=0.0, high=120.0),
)


def make_head(seed: int = 0) -> FusionHead:
    torch.manual_seed(seed)
    head = FusionHead(SHAPE, MODALITIES, FIELDS)
    for tensor in (*head.buffers(), *head.parameters()):
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor)
    head.spread.abs_().add_(0.5)
    head.knots.copy_(head.knots.sort(dim=1).values)
    return head.eval()


def make_card(head: FusionHead, **changes: object) -> AdapterCard:
    methods = ("film", "note", "laboratory", "patient", PRODUCT, JOINT)
    rules = []
    for place, subset in enumerate(subsets_of(MODALITIES)):
        method = subset[0] if len(subset) == 1 else methods[4 + place % 2]
        rules.append(asdict(SubsetRule(subset, method, subset[0], 0.5 + 0.1 * place, 0.2 - 0.05 * place, 10)))
    options = {
        "shape": asdict(SHAPE),
        "modalities": list(MODALITIES),
        "fields": [asdict(field) for field in FIELDS],
        "rules": rules,
        "prior": -0.7,
        "conformal_absent": 0.3,
    }
    card = AdapterCard("course", "fusion", ("icu",), BaseRecord("fake", "0"), 1, head=options, thresholds=(0.4,))
    card = replace(card, conformal=Conformal(0.9, (0.2,), "val"), **changes)  # type: ignore[arg-type]
    return AdapterCard.from_json(card.to_json())


@pytest.fixture
def predictor() -> FusionPredictor:
    head = make_head()
    return FusionPredictor.open(make_card(head), head.state_dict())


def film(seed: int, count: int = 1) -> SimpleNamespace:
    random = torch.Generator().manual_seed(seed)
    levels = tuple(torch.randn(count, width, 2, 2, generator=random) for width in (3, 4, 5, 6))
    embedding, tokens = torch.randn(count, 8, generator=random), torch.randn(count, 4, 6, generator=random)
    return SimpleNamespace(embedding=embedding, tokens=tokens, levels=levels)


NOTE = torch.linspace(-1, 1, 8)
TABLE = {"crp": 12.0, "ldh": "inf", "sex": "M", "age": 60}


@pytest.mark.parametrize("subset", subsets_of(MODALITIES))
@pytest.mark.parametrize("noise", ["numbers", "nan"])
def test_what_stands_in_an_absent_modalitys_place_changes_nothing(subset: tuple[str, ...], noise: str) -> None:
    head = make_head()
    full = FusionPredictor.open(make_card(head), head.state_dict()).read([film(1, 2)], NOTE, TABLE)
    present = torch.tensor([[name in subset for name in MODALITIES]])
    plain, noisy = full.with_present(present), replace_absent(full.with_present(present), noise)
    columns = [place for place, name in enumerate((*MODALITIES, PRODUCT, JOINT)) if name in (*subset, PRODUCT, JOINT)]
    with torch.no_grad():
        before, after = head(plain)[..., columns], head(noisy)[..., columns]
        everything = head(full)[..., columns]
    assert torch.equal(before, after)
    assert torch.isfinite(after).all()
    assert len(subset) == 4 or not torch.equal(before[..., -1], everything[..., -1])


def replace_absent(inputs: FusionInputs, noise: str) -> FusionInputs:
    def make(tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, float("nan")) if noise == "nan" else 100 * torch.randn_like(tensor)

    is_there = dict(zip(MODALITIES, inputs.present[0].tolist(), strict=True))
    changes: dict[str, torch.Tensor] = {}
    if not is_there["film"]:
        changes |= {"films": make(inputs.films), "patches": make(inputs.patches), "shown": ~inputs.shown}
    if not is_there["note"]:
        changes["note"] = make(inputs.note)
    numbers, states, words = inputs.numbers.clone(), inputs.states.clone(), inputs.words.clone()
    for place, field in enumerate(FIELDS):
        if not is_there[field.modality]:
            numbers[:, place], states[:, place] = make(numbers[:, place]), (states[:, place] + 1) % 4
            words[:, place] = 1 - words[:, place]
    return replace(inputs, **changes, numbers=numbers, states=states, words=words)


def test_leaving_a_modality_out_is_the_same_as_marking_it_absent(predictor: FusionPredictor) -> None:
    everything = predictor([film(1)], NOTE, TABLE)
    by_subset = {answer.modalities: answer for answer in everything.subsets}
    alone = predictor([film(1)], None, {"crp": 12.0, "ldh": "inf"})
    assert alone.present == ("film", "laboratory")
    assert alone.absent == ("note", "patient")
    assert alone.logit == pytest.approx(by_subset["film", "laboratory"].logit, abs=1e-6)
    assert alone.method == by_subset["film", "laboratory"].method
    nothing_said = predictor([film(1)], None, {"crp": 12.0, "ldh": "inf", "sex": None, "age": None})
    assert nothing_said.logit == alone.logit
    assert nothing_said.present == alone.present


def test_the_account_lists_every_subset_and_adds_up(predictor: FusionPredictor) -> None:
    result = predictor([film(1)], NOTE, TABLE)
    assert [answer.modalities for answer in result.subsets] == list(subsets_of(MODALITIES))
    assert sum(result.shapley.values()) == pytest.approx(result.logit - predictor.prior_logit, abs=1e-9)
    assert result.prior == pytest.approx(sigmoid(-0.7))
    assert result.unimodal == {answer.modalities[0]: answer.probability for answer in result.subsets[:4]}
    assert all(answer.probability == pytest.approx(sigmoid(answer.logit)) for answer in result.subsets)
    assert result.probability == result.subsets[-1].probability
    assert set(result.conformal) == {
        name for name, chance in (("icu", result.probability - 0.2), ("no icu", 0.7 - result.probability)) if chance >= 0
    }


@pytest.mark.parametrize("given", [("film", "note"), ()])
def test_contributions_add_up_to_what_the_numbers_moved(predictor: FusionPredictor, given: tuple[str, ...]) -> None:
    pytest.importorskip("captum")
    images, text = ([film(1)], NOTE) if given else ([], None)
    with torch.inference_mode():  # as the engine asks
        result = predictor(images, text, TABLE, with_contributions=True)
        inputs = predictor.read(images, text, TABLE)
        at_medians = replace(inputs, numbers=torch.zeros_like(inputs.numbers))
        moved = result.logit - predictor.judge(at_medians).logit
    assert result.contributions is not None
    assert list(result.contributions) == ["crp", "age"]  # not what is beyond detection, nor a word
    assert sum(result.contributions.values()) == pytest.approx(moved, rel=0.05, abs=0.01)
    assert any(abs(value) > 1e-3 for value in result.contributions.values())
    assert predictor(images, text, TABLE).contributions is None
    assert predictor([film(1)], None, {}, with_contributions=True).contributions == {}


def test_shapley_of_a_known_game() -> None:
    """A and B each add 1, together 3 more; C adds nothing."""
    worth = {
        subset: float(("a" in subset) + ("b" in subset) + 3 * ({"a", "b"} <= set(subset)))
        for subset in subsets_of(("a", "b", "c"), with_empty=True)
    }
    assert shapley(("a", "b", "c"), worth) == pytest.approx({"a": 2.5, "b": 2.5, "c": 0.0})


def test_films_of_a_patient_count_alike_however_they_come(predictor: FusionPredictor) -> None:
    one, other = film(1), film(2)
    both = SimpleNamespace(
        embedding=torch.cat([one.embedding, other.embedding]),
        tokens=torch.cat([one.tokens, other.tokens]),
        levels=tuple(torch.cat(pair) for pair in zip(one.levels, other.levels, strict=True)),
    )
    apart, together, turned = (predictor(given) for given in ([one, other], [both], [other, one]))
    assert apart.logit == together.logit
    assert turned.logit == pytest.approx(apart.logit, abs=1e-5)
    assert predictor([one]).logit != apart.logit
    with torch.no_grad():  # a place without a film is no film
        head = predictor.head
        seen = head.read_films(one)
        padded = head.gather([seen], [None], [{}], places=3)
        assert torch.allclose(head(padded), head(head.gather([seen], [None], [{}])), atol=1e-6)


def test_the_four_states_of_a_number_differ(predictor: FusionPredictor) -> None:
    cells = (12.0, None, "-inf", float("inf"))
    results = [predictor([], None, {"crp": cell, "ldh": 200}) for cell in cells]
    assert len({round(result.logit, 6) for result in results}) == 4
    assert predictor([], None, {"crp": float("-inf"), "ldh": 200}).logit == results[2].logit
    assert predictor([], None, {"ldh": 200}).logit == results[1].logit


def test_a_value_beyond_the_training_rows_is_named(predictor: FusionPredictor) -> None:
    assert predictor([], None, {"crp": 900.0}).unusual == ("crp",)
    assert predictor([], None, {"crp": 300.0}).unusual == ()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"crq": 1.0}, "'crq'"),
        ({"crp": "high"}, "'crp'.*mg/L"),
        ({"crp": True}, "'crp'"),
        ({"crp": -3.0}, "'crp'.*0 to 1000 mg/L"),
        ({"crp": 2000.0}, "'crp'.*another unit"),
        ({"crp": float("nan")}, "'crp'.*null"),
        ({"sex": 1}, "'sex'.*F, M"),
        ({"sex": "male"}, "'sex'"),
        ({"age": 140}, "'age'"),
    ],
)
def test_a_wrong_field_is_refused_by_name(predictor: FusionPredictor, table: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        predictor([film(1)], None, table)  # type: ignore[arg-type]
    assert refused.value.param == next(iter(table))


def test_nothing_at_all_is_refused(predictor: FusionPredictor) -> None:
    with pytest.raises(InvalidRequest, match="at least one of: film, note, laboratory, patient"):
        predictor([], None, {"crp": None})


def test_a_head_without_notes_refuses_one() -> None:
    torch.manual_seed(0)
    shape = replace(SHAPE, note=1)
    head = FusionHead(shape, ("film",), ())
    rules = [asdict(SubsetRule(("film",), "film", "film"))]
    options = {
        "shape": asdict(shape),
        "modalities": ["film"],
        "fields": [],
        "rules": rules,
        "prior": 0.0,
        "conformal_absent": 0.0,
    }
    card = replace(make_card(make_head()), head=options)
    predictor = FusionPredictor.open(card, head.state_dict())
    assert not predictor.reads_notes
    with pytest.raises(InvalidRequest, match="reads no notes"):
        predictor([film(1)], NOTE)


def test_a_card_that_does_not_fit_is_refused() -> None:
    head = make_head()
    card, tensors = make_card(head), head.state_dict()
    with pytest.raises(AdapterRefused, match="film_axes"):
        FusionPredictor.open(card, {**tensors, "film_axes": tensors["film_axes"][:, :2]})
    for change in ({"rules": card.head["rules"][:-1]}, {"modalities": ["film", "note", "laboratory"]}, {"shape": {"film": 3}}):
        with pytest.raises(AdapterRefused):
            FusionPredictor.open(replace(card, head={**card.head, **change}), tensors)
    with pytest.raises(AdapterRefused, match="field"):
        FusionPredictor.open(replace(card, head={**card.head, "fields": [{"name": "crp"}]}), tensors)


def test_ranks_are_of_the_training_rows() -> None:
    head = make_head()
    head.knots[0] = torch.tensor([1.0] * 5 + [float(2 + step) for step in range(12)])
    head.centre[0], head.spread[0] = 4.0, 2.0
    values = [head.read_table({"crp": value})[0][0].tolist() for value in (1.0, 0.0, 4.0, 4.5, 999.0)]
    assert values[0] == pytest.approx([-1.5, -0.75])  # the middle of five equal quantiles
    assert values[1] == pytest.approx([-2.0, -1.0])
    assert values[4] == pytest.approx([3.0, 1.0])
    assert values[2] == pytest.approx([0.0, -1 + 2 * 7 / 16])
    assert values[3] == pytest.approx([0.25, -1 + 2 * 7.5 / 16])
