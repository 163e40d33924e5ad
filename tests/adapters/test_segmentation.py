"""The segmentation head learns everywhere, ignores empty hints, and draws in the film's own pixels."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.card import AdapterCard, BaseRecord
from adapters.fake import FakeBackbone
from adapters.tasks.prompting import Point, Prompt
from adapters.tasks.rle import from_rle
from adapters.tasks.segmentation import SegmentationHead, Segmenter
from foundation.errors import AdapterRefused, InvalidRequest
from foundation.preprocess import InputContract

LABELS = ("lungs", "heart")
WIDTHS = (8, 16, 16, 24)
CONTRACT = InputContract(32, (0.5,) * 3, (0.5,) * 3, resize_mode="longest")
BUNDLED = (256, (256, 512, 1024, 2048))  # embedding and levels of resnet14t


def features(rows: int = 2) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    grids = (8, 4, 4, 2)
    return SimpleNamespace(
        levels=tuple(torch.randn(rows, w, g, g, generator=generator) for w, g in zip(WIDTHS, grids, strict=True))
    )


def make_head() -> SegmentationHead:
    torch.manual_seed(0)
    head = SegmentationHead(2, 16, WIDTHS)
    torch.nn.init.normal_(head.text)
    return head


def make_card(**changes: object) -> AdapterCard:
    given = {"name": "x", "task": "segmentation", "labels": LABELS, "base": BaseRecord("b", "f"), "preprocessing_version": 1}
    return AdapterCard(**(given | {"head": {"embed_dim": 16, "level_widths": list(WIDTHS)}} | changes))


def test_every_tensor_learns() -> None:
    head = make_head()
    output = head(features(), torch.randn(2, 3, 32, 32))
    hints, newest = torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16)
    hints[:, :, 4:8, 4:8] = newest[:, 4:8, 4:8] = 1.0
    refined = head.refiner(output.x, output.masks[:, 0], hints, newest)
    (output.masks.square().mean() + output.presence.square().mean() + refined.square().mean()).backward()
    still = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_classes_start_from_their_names() -> None:
    backbone = FakeBackbone()
    head = SegmentationHead(2, 16, WIDTHS)
    head.start_from_text(backbone, LABELS, ("{}", "the {}"))
    mean = torch.nn.functional.normalize(backbone.encode_text(["lungs", "the lungs"]).mean(0), dim=0)
    torch.testing.assert_close(head.text[0].detach(), mean)
    with pytest.raises(InvalidRequest, match="template"):
        head.start_from_text(backbone, LABELS, ("no place",))


def test_the_head_is_small_enough_to_carry() -> None:
    embed_dim, widths = BUNDLED
    count = sum(parameter.numel() for parameter in SegmentationHead(4, embed_dim, widths).parameters())
    assert count * 2 < 1 << 20  # bytes in float16


def test_results_are_in_the_films_own_pixels() -> None:
    segmenter = Segmenter.open(make_card(thresholds=(0.5, 0.6)), {k: v.half() for k, v in make_head().state_dict().items()})
    chances = np.zeros((2, 16, 16), np.float32)
    chances[:, 4:12, 6:10] = 1.0  # of the square; the film of 60 x 30 pixels fills its columns 4 to 12
    result = segmenter.result(chances, np.array([0.9, 0.55]), (60, 30), CONTRACT)
    assert result.masks.shape == (2, 60, 30)
    rows, columns = np.nonzero(result.mask("lungs"))
    assert (rows.min(), rows.max()) == pytest.approx((15, 44), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((7.5, 21.5), abs=1)
    assert result.found == ("lungs",)  # the heart's presence is below its threshold: nothing here
    assert np.array_equal(from_rle(result.rle("lungs")), result.mask("lungs"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(result.png("lungs")))), result.mask("lungs"))
    assert result.area_mm2("lungs", (2.0, 0.5)) == result.mask("lungs").sum()
    with pytest.raises(InvalidRequest, match="'liver'"):
        result.mask("liver")


def test_rows_of_a_batch_are_answered_as_alone() -> None:
    segmenter = Segmenter.open(make_card(), make_head().state_dict())
    pixels, films = torch.randn(2, 3, 32, 32), [(40, 40), (50, 25)]
    prompts = [None, Prompt((Point(20, 10),))]
    together = segmenter(features(), pixels, films, CONTRACT, prompts)
    for row in range(2):
        part = SimpleNamespace(levels=tuple(level[row : row + 1] for level in features().levels))
        [alone] = segmenter(part, pixels[row : row + 1], films[row : row + 1], CONTRACT, prompts[row : row + 1])
        assert np.array_equal(alone.masks, together[row].masks)
        np.testing.assert_allclose(alone.presence, together[row].presence, atol=1e-5)


def test_only_the_clicked_class_answers_and_the_clicked_pixel_holds() -> None:
    segmenter, pixels = Segmenter.open(make_card(), make_head().state_dict()), torch.randn(1, 3, 32, 32)
    seen = SimpleNamespace(levels=tuple(level[:1] for level in features().levels))
    for row, column in ((3.0, 60.0), (40.0, 7.5), (79.0, 0.0)):
        points = (Point(20, 40), Point(row, column), Point(60, 30, is_inside=False))
        [result] = segmenter(seen, pixels, [(80, 80)], CONTRACT, [Prompt(points)], ["heart"])
        mask = result.mask("heart")
        assert mask[20, 40]
        assert mask[int(row), int(column)]
        assert not mask[60, 30]
        assert result.presence[1] == 1.0
        assert (result.presence[0], result.mask("lungs").any()) == (0.0, False)


def test_no_marks_are_as_no_prompt() -> None:
    segmenter, pixels, films = Segmenter.open(make_card(), make_head().state_dict()), torch.randn(2, 3, 32, 32), [(40, 40)] * 2
    plain = segmenter(features(), pixels, films, CONTRACT)
    marked = segmenter(features(), pixels, films, CONTRACT, [Prompt(), Prompt((Point(3, 3),))])
    assert np.array_equal(plain[0].masks, marked[0].masks)
    assert np.array_equal(plain[0].presence, marked[0].presence)
    assert not np.array_equal(plain[1].presence, marked[1].presence)


def test_heads_that_do_not_bind_are_refused() -> None:
    tensors = make_head().state_dict()
    with pytest.raises(AdapterRefused, match="do not bind: text"):
        Segmenter.open(make_card(), {name: tensor for name, tensor in tensors.items() if name != "text"})
    with pytest.raises(AdapterRefused, match="is for classification"):
        Segmenter.open(make_card(task="classification"), tensors)
    with pytest.raises(AdapterRefused, match="odd are width"):
        Segmenter.open(make_card(head={"embed_dim": 16, "level_widths": list(WIDTHS), "width": 3}), tensors)
