"""The classification head starts as zero-shot, learns everywhere, and its results are calibrated as the card says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adapters.card import AdapterCard, BaseRecord, Calibration
from adapters.fake import FakeBackbone
from adapters.files import read_adapter
from adapters.tasks.classification import ClassificationHead, Classifier, Prompts, calibrate
from foundation.errors import AdapterRefused, InvalidRequest

LABELS = ("effusion", "pleural thickening", "mass")


def features(rows: int = 4) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    embedding = F.normalize(torch.randn(rows, 16, generator=generator), dim=-1)
    return SimpleNamespace(embedding=embedding, tokens=torch.randn(rows, 9, 32, generator=generator))


def mean_text(backbone: FakeBackbone, texts: list[str]) -> torch.Tensor:
    return F.normalize(backbone.encode_text(texts).mean(0), dim=0)


@pytest.mark.parametrize("negatives", [(), ("no {}",)])
def test_the_untrained_head_is_zero_shot(backbone: FakeBackbone, negatives: tuple[str, ...]) -> None:
    templates = ("there is {}", "{} is seen")
    head = ClassificationHead(3, 16, 32)
    head.start_from_text(backbone, Prompts.from_templates(LABELS, templates, negatives))
    x = features()
    for column, label in enumerate(LABELS):
        expected = x.embedding @ mean_text(backbone, [text.format(label) for text in templates])
        if negatives:
            expected = expected - x.embedding @ mean_text(backbone, [f"no {label}"])
        torch.testing.assert_close(head(x)[:, column], 10.0 * expected, atol=1e-5, rtol=0)


def test_sigmoid_backbones_keep_their_bias(backbone: FakeBackbone) -> None:
    backbone.logit_bias = -7.0
    head = ClassificationHead(3, 16, 32)
    head.start_from_text(backbone, Prompts.from_templates(LABELS, ("{}",)))
    assert torch.all(head.text.bias == -7.0)


@pytest.mark.parametrize("template", ["no place", "{} and {}"])
def test_templates_without_one_place_are_refused(template: str) -> None:
    with pytest.raises(InvalidRequest, match="template"):
        Prompts.from_templates(LABELS, (template,))


def test_evidence_sums_to_the_token_part_and_every_part_learns() -> None:
    head = ClassificationHead(3, 16, 32)
    torch.nn.init.normal_(head.query)
    torch.nn.init.normal_(head.value)
    x = features()
    torch.testing.assert_close(head.evidence(x).sum(1) + head.text(x.embedding), head(x))
    head(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in head.parameters())


def test_calibration_and_thresholds() -> None:
    card = AdapterCard(
        name="x",
        task="classification",
        labels=LABELS,
        base=BaseRecord("b", "f"),
        preprocessing_version=1,
        head={"embed_dim": 16, "width": 32},
        calibration=Calibration("platt", (2.0, 1.0, 0.5), (0.0, -1.0, 1.0)),
        thresholds=(0.5, 0.3, 0.9),
    )
    classifier = Classifier.open(card, ClassificationHead(3, 16, 32).state_dict())
    result = classifier.result(np.array([0.5, 0.0, 2.0]))
    expected = 1 / (1 + np.exp(-np.array([1.0, -1.0, 2.0])))
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-12)
    assert result.positive == ("effusion",)  # 0.73 >= 0.5; 0.27 < 0.3; 0.88 < 0.9
    assert result.normal_probability == pytest.approx(np.prod(1 - expected))


def test_multi_class_probabilities_sum_to_one() -> None:
    logits = np.array([[1.0, 2.0, -800.0], [900.0, 2.0, 3.0]])
    probabilities = calibrate(logits, Calibration("temperature", (0.5,)), is_multi_label=False)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0)
    assert probabilities[0, 1] / probabilities[0, 0] == pytest.approx(np.exp(0.5))


def test_extreme_logits_stay_finite() -> None:
    assert calibrate(np.array([-1e4, 1e4]), Calibration(), is_multi_label=True).tolist() == [0.0, 1.0]


def test_a_folder_opens_as_a_classifier(folder: Path, backbone: FakeBackbone) -> None:
    adapter = read_adapter(folder, backbone)
    results = Classifier.open(adapter.card, adapter.head)(features(2))
    assert len(results) == 2
    assert results[0].labels == ("effusion", "mass")
    with pytest.raises(AdapterRefused, match="do not bind: value"):
        Classifier.open(adapter.card, {name: tensor for name, tensor in adapter.head.items() if name != "value"})
