"""Each loss against a plain definition, pair by pair; what is unknown takes no part in values or gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.pretraining import objectives

NAN = float("nan")


def entropy(logit: float, target: float) -> float:
    chance = 1 / (1 + math.exp(-logit))
    return -target * math.log(chance) - (1 - target) * math.log(1 - chance)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def targets() -> Tensor:
    """Two sources: columns 0 to 2 are known for films 0 to 3, columns 2 to 4 for films 4 to 6."""
    known = torch.rand(7, 5).round()
    known[:4, 3:] = NAN
    known[4:, :2] = NAN
    known[1, 2] = 0.4
    return known


def test_known_bce(targets: Tensor) -> None:
    logits, weights = torch.randn(7, 5, requires_grad=True), torch.tensor([1.0, 0.3, 1.0, 2.0, 0.5])
    loss = objectives.known_bce(logits, targets, weights)
    pairs = [(i, k) for i in range(7) for k in range(5) if not math.isnan(targets[i, k])]
    total = sum(float(weights[k]) * entropy(logits[i, k].item(), targets[i, k].item()) for i, k in pairs)
    assert loss.item() == pytest.approx(total / sum(float(weights[k]) for _, k in pairs), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, ~targets.isnan())


def test_nothing_known_is_no_loss_and_no_gradient() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = objectives.known_bce(logits, torch.full((3, 2), NAN), torch.ones(2))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0.0


def test_finding_supervision_starts_at_the_priors(targets: Tensor) -> None:
    priors, weights = torch.tensor([0.1, 0.5, 0.9, 0.0, 1.0]), torch.ones(5)
    head = objectives.FindingSupervision(6, priors, weights)
    pooled = torch.randn(7, 6)
    torch.testing.assert_close(head.head(pooled).sigmoid(), priors.clamp(0.01, 0.99).expand(7, 5))
    torch.nn.init.normal_(head.head.weight)
    assert torch.equal(head(pooled, targets), objectives.known_bce(head.head(pooled), targets, weights))
    assert "weights" not in head.state_dict()


def test_pair_targets(targets: Tensor) -> None:
    texts = ["a", "b", "b", "c", "d", "a", "e"]
    soft, weight = objectives.pair_targets(targets, texts)
    for i in range(7):
        for j in range(7):
            both = [k for k in range(5) if not math.isnan(targets[i, k]) and not math.isnan(targets[j, k])]
            same_kind = torch.equal(targets[i].isnan(), targets[j].isnan())
            shared = sum(float(targets[i, k] * targets[j, k]) for k in both)
            either = sum(1 - float((1 - targets[i, k]) * (1 - targets[j, k])) for k in both)
            agreement = shared / either if either else 1.0
            wanted = 1.0 if texts[i] == texts[j] else 0.9 * agreement**2 if same_kind else 0.0
            assert float(soft[i, j]) == pytest.approx(wanted, abs=1e-6), (i, j)
            assert float(weight[i, j]) == pytest.approx(1.0 if same_kind or texts[i] == texts[j] else 0.1)


def test_sigmoid_pair_loss(targets: Tensor) -> None:
    images, texts = unit(7, 8).requires_grad_(), unit(7, 8)
    scale, bias = torch.tensor(10.0), torch.tensor(-4.0)
    soft, weight = objectives.pair_targets(targets, list("abbcdae"))
    loss = objectives.sigmoid_pair_loss(images, texts, soft, weight, scale, bias)
    sides: dict[bool, list[float]] = {True: [], False: []}
    for i in range(7):
        for j in range(7):
            logit = 10.0 * (images[i] @ texts[j]).item() - 4.0
            sides[float(soft[i, j]) > 0.5].append(float(weight[i, j]) * entropy(logit, float(soft[i, j])))
    assert loss.item() == pytest.approx(np.mean(sides[True]) + np.mean(sides[False]), rel=1e-4)
    loss.backward()
    assert images.grad is not None
    assert bool((images.grad.abs().sum(1) > 0).all())
    alone = objectives.sigmoid_pair_loss(images[:1], texts[:1], torch.ones(1, 1), torch.ones(1, 1), scale, bias)
    assert bool(torch.isfinite(alone))  # a batch without a negative


def test_prompt_pair_loss(targets: Tensor) -> None:
    images, positive, negative = unit(7, 8).requires_grad_(), unit(5, 8), unit(5, 8)
    weights = torch.tensor([1.0, 0.3, 1.0, 2.0, 0.5])
    loss = objectives.prompt_pair_loss(images, positive, negative, targets, weights, torch.tensor(10.0))
    total = part = 0.0
    for i in range(7):
        for k in range(5):
            if not math.isnan(targets[i, k]):
                logit = 10.0 * (images[i] @ (positive[k] - negative[k])).item()
                total += float(weights[k]) * entropy(logit, float(targets[i, k]))
                part += float(weights[k])
    assert loss.item() == pytest.approx(total / part, rel=1e-4)
    unknown = objectives.prompt_pair_loss(images, positive, negative, torch.full((7, 5), NAN), weights, torch.tensor(10.0))
    assert unknown.item() == 0.0


def test_patch_text_loss() -> None:
    patches, texts = unit(3, 4, 8).requires_grad_(), unit(2, 8)
    masks = torch.rand(3, 2, 2, 2) * 0.5
    masks[:, 1] *= 0.1
    masks[2] = NAN  # a real film
    loss = objectives.patch_text_loss(patches, texts, masks, torch.tensor(10.0))
    logits = 10.0 * (patches @ texts.T).detach()
    centre = float(logits.mean())
    sides: dict[bool, list[float]] = {True: [], False: []}
    for film in range(2):
        for row in range(2):
            for column in range(2):
                for finding in range(2):
                    target = min(1.0, 4 * float(masks[film, finding, row, column]))
                    logit = float(logits[film, 2 * row + column, finding]) - centre
                    sides[target > 0.25].append(entropy(logit, target))
    assert loss.item() == pytest.approx(np.mean(sides[True]) + np.mean(sides[False]), rel=1e-4)
    loss.backward()
    assert patches.grad is not None
    assert [bool(film.abs().sum() > 0) for film in patches.grad] == [True, True, False]
    nowhere = objectives.patch_text_loss(patches, texts, torch.full_like(masks, NAN), torch.tensor(10.0))
    nowhere.backward()
    assert nowhere.item() == 0.0


def spread_out(coarse: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, from one value a 16-pixel square to every pixel: rows, then columns."""
    count = len(coarse)
    place = np.maximum((np.arange(size) + 0.5) / 16 - 0.5, 0)
    low = np.floor(place).astype(int)
    high, share = np.minimum(low + 1, count - 1), place - low
    rows = coarse[low] * (1 - share)[:, None] + coarse[high] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def local_mean(film: np.ndarray) -> np.ndarray:
    size = len(film)
    coarse = [[film[i : i + 16, j : j + 16].mean() for j in range(0, size, 16)] for i in range(0, size, 16)]
    return spread_out(np.array(coarse), size)


def test_masked_film_paints_what_was_hidden() -> None:
    films, stride = torch.rand(2, 1, 32, 32), 16
    masked = objectives.MaskedFilm(6, stride)
    hidden, mask = masked.hide(films, torch.Generator().manual_seed(1))
    assert 0 < float(mask.mean()) < 1
    for film in range(2):
        for top in range(0, 32, 16):
            for left in range(0, 32, 16):
                square = (film, 0, slice(top, top + 16), slice(left, left + 16))
                assert len(mask[square].unique()) == 1
                expected = films[film].mean().expand(16, 16) if mask[square].any() else films[square]
                torch.testing.assert_close(hidden[square], expected)
    features = torch.randn(2, 6, 2, 2)
    loss = masked(features, films, mask)
    weight, bias = masked.paint.weight.detach().flatten(1), masked.paint.state_dict()["bias"]
    total = 0.0
    for index in range(2):
        film = films[index, 0].double().numpy()
        mean = local_mean(film)
        wanted = 0.5 * (film - mean) / np.sqrt(local_mean((film - mean) ** 2) + 1e-3) + film - 0.5
        for y in range(32):
            for x in range(32):
                if mask[index, 0, y, x]:
                    channel = (y % stride) * stride + x % stride
                    painted = float(weight[channel] @ features[index, :, y // stride, x // stride] + bias[channel])
                    total += abs(painted - wanted[y, x])
    assert loss.item() == pytest.approx(total / float(mask.sum()), rel=1e-4)


def test_histograms_of_gradients_vote_pixel_by_pixel() -> None:
    films = torch.rand(2, 1, 16, 24)
    told = objectives.MaskedGradients(6, 8, cell=8, bins=9)
    found = told.histograms(films)
    assert found.shape == (2, 9, 2, 3)
    for index in range(2):
        film = films[index, 0].double().numpy()
        edged = np.pad(film, 1, mode="edge")
        votes = np.zeros((9, 2, 3))
        for y in range(16):
            for x in range(24):
                dx, dy = edged[y + 1, x + 2] - edged[y + 1, x], edged[y + 2, x + 1] - edged[y, x + 1]
                place = math.atan2(dy, dx) % math.pi / math.pi * 9
                low, share = int(place), place - int(place)
                votes[low % 9, y // 8, x // 8] += math.hypot(dx, dy) * (1 - share) / 64
                votes[(low + 1) % 9, y // 8, x // 8] += math.hypot(dx, dy) * share / 64
        np.testing.assert_allclose(found[index], votes / (np.linalg.norm(votes, axis=0) + 0.01), atol=1e-4)


def test_hidden_gradients_weigh_four_times_the_seen() -> None:
    films = torch.rand(2, 1, 32, 32)
    told = objectives.MaskedGradients(6, 16, cell=8)
    seen, hidden = told.hide(films, torch.Generator().manual_seed(3))
    assert 0 < float(hidden.mean()) < 1
    for film in range(2):
        for row in range(2):
            for column in range(2):
                square = (film, 0, slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
                is_hidden = bool(hidden[film, 0, row, column])
                expected = films[film].mean().expand(16, 16) if is_hidden else films[square]
                torch.testing.assert_close(seen[square], expected)
    features = torch.randn(2, 6, 2, 2)
    painted = F.pixel_shuffle(told.tell(features), 2).detach()
    wanted, total, weights = told.histograms(films), 0.0, 0.0
    for film in range(2):
        for row in range(4):
            for column in range(4):
                weight = 4.0 if hidden[film, 0, row // 2, column // 2] else 1.0
                total += weight * (painted[film, :, row, column] - wanted[film, :, row, column]).square().mean().item()
                weights += weight
    assert told(features, films, hidden).item() == pytest.approx(100 * total / weights, rel=1e-4)


def test_captioning_equals_writing_one_word_at_a_time() -> None:
    captions = objectives.Captioning(6, vocabulary=20, pad_id=0, model_width=16, length=5)
    tokens = torch.randn(2, 4, 6)
    ids = torch.tensor([[3, 7, 9, 4, 0, 0, 0, 0], [5, 6, 11, 8, 2, 12, 13, 14]])
    loss = captions(tokens, ids)
    losses = []
    for row in range(2):
        for place in range(5):  # what lies beyond the length is not learnt
            wanted = int(ids[row, place + 1])
            if wanted:
                given = captions.embed(ids[row : row + 1, : place + 1]) + captions.position[: place + 1]
                mask = nn.Transformer.generate_square_subsequent_mask(place + 1)
                hidden = captions.decoder(given, captions.memory(tokens[row : row + 1]), tgt_mask=mask)
                written = captions.norm(hidden)[:, -1] @ captions.embed.weight.T
                losses.append(F.cross_entropy(written, torch.tensor([wanted])).item())
    assert len(losses) == 3 + 5
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
