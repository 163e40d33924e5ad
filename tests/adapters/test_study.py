"""Attention over a study: weights add up to one, before training it is the mean, and every part learns."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from adapters.card import AdapterCard, BaseRecord
from adapters.tasks.classification import ClassificationHead, Classifier
from adapters.tasks.study import StudyPool, pool_studies

STUDY = torch.tensor([0, 1, 0, 2, 0])


def films() -> SimpleNamespace:
    torch.manual_seed(1)
    return SimpleNamespace(embedding=torch.randn(5, 16), tokens=torch.randn(5, 4, 8), levels=())


def head(hidden: int = 6) -> ClassificationHead:
    made = ClassificationHead(2, 16, 8, study_hidden=hidden)
    torch.manual_seed(2)
    torch.nn.init.normal_(made.text.weight)
    return made


def test_before_training_a_study_is_the_mean_of_its_films() -> None:
    x = films()
    for made in (head(), head(0)):
        logits = made(x)
        expected = torch.stack([logits[one == STUDY].mean(0) for one in range(3)])
        torch.testing.assert_close(made.of_studies(x, STUDY), expected)


def test_a_study_is_the_same_in_any_company_and_order() -> None:
    made, x = head(), films()
    assert made.study is not None
    torch.nn.init.normal_(made.study.score.weight)
    weights = made.study(x.embedding, STUDY)
    torch.testing.assert_close(pool_studies(torch.ones(5, 1), weights, STUDY), torch.ones(3, 1))
    assert weights[[0, 2, 4]].std() > 0.01
    order = torch.tensor([4, 0, 2])
    alone = SimpleNamespace(embedding=x.embedding[order], tokens=x.tokens[order], levels=())
    torch.testing.assert_close(made.of_studies(alone, torch.zeros(3, dtype=torch.long))[0], made.of_studies(x, STUDY)[0])


def test_every_part_learns() -> None:
    pool = StudyPool(16, 6)
    torch.nn.init.normal_(pool.score.weight)
    (pool(films().embedding, STUDY) * torch.tensor([1.0, 2, 3, 4, 5])).sum().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in pool.parameters())


def test_an_opened_head_answers_for_a_study() -> None:
    made = head()
    card = AdapterCard("x", "classification", ("a", "b"), BaseRecord("b", "f"), 1, head=made.options)
    opened = Classifier.open(card, made.state_dict())
    result = opened.of_study(films())
    expected = made(films()).mean(0)
    torch.testing.assert_close(torch.from_numpy(result.logits), expected.double().detach(), atol=1e-5, rtol=0)
