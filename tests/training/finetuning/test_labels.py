"""What is known of a film, and what its loss is: unknown labels teach nothing, classes exclude one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foundation.errors import InvalidRequest, ManifestError
from foundation.phantom import FINDINGS
from foundation.preprocess import InputContract
from training.finetuning.classification.label_losses import LabelLoss, positive_weights
from training.finetuning.classification.label_table import LabelTable, choose_table
from training.finetuning.classification.phantom_rows import FIRST_SEED, phantom_films, phantom_rows, phantom_truth
from training.finetuning.classification.trainee import mean_auroc, prompts_of, rankable
from training.finetuning.recipe import DataRecipe, FinetuneRecipe, HeadRecipe, LabelGroup, TrainingRecipe
from training.manifests.manifest import Manifest, Row

NAN = float("nan")
FREE = LabelGroup("findings", ("mass", "edema"), where=("source=a",))
KIND = LabelGroup("kind", ("normal", "viral", "bacterial"), multi_label=False, where=("source=b",))
TABLE = LabelTable((FREE, KIND))


def row(number: int, source: str, *labels: str, split: str = "train", **extra: object) -> Row:
    return Row(number, f"r{number}", Path("x"), split, f"p{number}", "g", labels, True, extra={"source": source, **extra})


def test_each_group_is_asked_of_its_source_only() -> None:
    truth = TABLE.truth([row(1, "a", "mass"), row(2, "b", "viral"), row(3, "c", "mass")])
    np.testing.assert_array_equal(truth, [[1, 0, NAN, NAN, NAN], [NAN, NAN, 0, 1, 0], [NAN] * 5])
    assert TABLE.exclusive == ((2, 3, 4),)
    with pytest.raises(ManifestError, match="Row 4 has not exactly one of the labels normal, viral"):
        TABLE.truth([row(4, "b", "viral", "normal")])


@pytest.mark.parametrize(("policy", "value"), [("ignore", NAN), ("ones", 1.0), ("zeros", 0.0), ("soft", 0.6)])
def test_uncertain_labels_follow_the_policy(policy: str, value: float) -> None:
    truth = TABLE.truth([row(1, "a", "mass", uncertain=["edema"])], policy)
    np.testing.assert_allclose(truth[0, :2], [1.0, value])


def test_tables_are_checked_against_the_rows() -> None:
    rows = Manifest(Path("m"), tuple(row(n, "a", "mass", "normal", split=s) for n, s in enumerate(("train", "val"))))
    assert choose_table(rows, DataRecipe()).labels == ("mass",)
    assert choose_table(rows, DataRecipe(multi_label=False)).labels == ("mass", "normal")
    for recipe, said in (
        (DataRecipe(heads=(FREE,)), "No train row has the label 'edema'"),
        (DataRecipe(heads=(LabelGroup("x", ("mass",)), LabelGroup("y", ("mass",)))), "'mass' is in more than one group"),
        (DataRecipe(contrasts=(("mass", "edema"),)), "contrasts names 'edema'"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            choose_table(rows, recipe)
    with pytest.raises(InvalidRequest, match="absence of the labels"):
        LabelGroup("x", ("normal", "mass"))
    with pytest.raises(InvalidRequest, match=r"data\.uncertain is 'maybe'"):
        FinetuneRecipe("x1", data=DataRecipe(uncertain="maybe"))


def test_normal_as_a_class_is_said_by_denying_the_others() -> None:
    prompts = prompts_of(TABLE, HeadRecipe(templates=("there is {}",), negatives=("no {}",)))
    assert prompts.positive[2] == ("no viral", "no bacterial")
    assert prompts.negative[2] == ("there is viral", "there is bacterial")
    assert prompts.positive[0] == ("there is mass",)


def loss_of(truth: torch.Tensor, **options: object) -> LabelLoss:
    return LabelLoss(TrainingRecipe(max_positive_weight=1.0, **options), TABLE.exclusive, truth)


def test_the_loss_is_the_mean_over_what_is_known() -> None:
    truth = torch.tensor([[1, 0, NAN, NAN, NAN], [NAN, 1, 0, 1, 0], [0, NAN, NAN, NAN, NAN]])
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss_of(truth)(logits, truth)
    cells = [F.binary_cross_entropy_with_logits(logits[i, k], truth[i, k]) for i, k in ((0, 0), (0, 1), (1, 1), (2, 0))]
    classes = F.cross_entropy(logits[1:2, 2:], torch.tensor([1]))
    torch.testing.assert_close(value, (2 * torch.stack(cells).mean() + classes) / 3)
    value.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, truth.isnan())


@pytest.mark.parametrize("name", ["asymmetric", "focal"])
def test_losses_for_imbalance_hardly_count_easy_negatives(name: str) -> None:
    truth = torch.tensor([[0.0, 0.0, NAN, NAN, NAN]])

    def of(loss: str, logit: float) -> float:
        return float(loss_of(truth, loss=loss)(torch.full((1, 5), logit), truth))

    assert of(name, -4.0) / of(name, 2.0) < 0.1 * of("bce", -4.0) / of("bce", 2.0)
    assert of(name, 3.0) > of(name, 0.0) > of(name, -3.0) >= 0.0


def test_rare_classes_are_not_drowned() -> None:
    truth = torch.tensor([[NAN, NAN, 1.0, 0, 0]] * 9 + [[NAN, NAN, 0, 1.0, 0]])
    logits = torch.zeros(10, 5, requires_grad=True)
    loss_of(truth, class_loss="logit_adjusted")(logits, truth).backward()
    assert logits.grad is not None
    shares = torch.tensor([0.9, 0.1])
    torch.testing.assert_close(logits.grad[-1, 3], (shares[1] / (shares.sum() + 1e-4) - 1) / 10 / 3, atol=1e-4, rtol=1e-2)
    assert loss_of(truth, class_loss="focal")(torch.zeros(10, 5), truth) < loss_of(truth)(torch.zeros(10, 5), truth)


def test_weights_and_figures_leave_out_the_unknown() -> None:
    truth = torch.tensor([[1.0, NAN], [0, NAN], [0, 1], [0, 0], [0, NAN]])
    torch.testing.assert_close(positive_weights(truth, 9.0), torch.tensor([2.0, 1.0]))
    scores = np.array([[3.0, 9], [2, 9], [1, 2], [0, 1], [0, 9]])
    assert mean_auroc(scores, truth.numpy()) == 1.0
    ranked = rankable(np.array([[1.0, 5.0, 5.0]]), ((1, 2),))
    np.testing.assert_allclose(ranked, [[1.0, -np.log(2), -np.log(2)]])


def test_phantoms_are_rows_whose_truth_is_exact(tmp_path: Path) -> None:
    contract = InputContract(48, (0.5,) * 3, (0.5,) * 3)
    films, findings = phantom_films(6, FIRST_SEED, contract, tmp_path)
    again, same = phantom_films(6, FIRST_SEED, contract, tmp_path)
    assert films.shape == (6, 48, 48, 1)
    assert np.array_equal(films, again)
    assert findings == same
    assert any(findings)
    assert {name for shown in findings for name in shown} <= set(FINDINGS)
    truth = phantom_truth(
        [("consolidation",), ("effusion", "tube"), ()], ("effusion", "consolidation", "pneumonia", "fibrosis")
    )
    np.testing.assert_array_equal(truth, [[0, 1, NAN, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    rows = phantom_rows(findings, FIRST_SEED)
    assert len({one.patient_id for one in rows}) == 6
    assert {(one.split, one.licence_class, one.get("source")) for one in rows} == {("train", "permissive", "phantom")}
    with pytest.raises(InvalidRequest, match="can be drawn into a phantom"):
        phantom_truth([()], ("fibrosis",))
