"""Two plain models trained on exactly the rows an adapter was trained on, so that its figures have a measure.

    hog   histogram of oriented gradients at 128 px -> PCA -> logistic regression, one a label, C chosen on `val`
    cnn   ResNet-18 from scratch at 128 px, a few epochs, the best of them on `val`

Predictions are kept on disk under the digest of the rows they were trained and tested on: nothing is computed twice,
and a changed row is a new digest.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from foundation.device import autocast_bf16
from foundation.errors import InvalidRequest
from training.manifests.manifest import Row, rows_digest
from training.measuring.metrics import auroc
from training.whole_file import whole

SIZE = 128  # pixels; most of the public chest films in use are kept at this size
HOG = {"orientations": 9, "pixels_per_cell": (16, 16), "cells_per_block": (2, 2)}
COMPONENTS = 256
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)  # PCA is not whitened: that cost 0.04 of mean AUROC on ChestX-ray14
TITLES = {"hog": "HOG + PCA + logistic regression", "cnn": "ResNet-18 from scratch"}

Films: TypeAlias = npt.NDArray[np.uint8]
Scores: TypeAlias = npt.NDArray[np.float64]
Report: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class SplitRows:
    """The rows of one comparison: learnt from `train`, chosen on `val`, scored on `test` (whatever split that is)."""

    train: tuple[Row, ...]
    val: tuple[Row, ...]
    test: tuple[Row, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256("".join(rows_digest(rows) for rows in (self.train, self.val, self.test)).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class BaselineScores:
    """probabilities (N test rows, K labels); `note` says how they were made."""

    name: str
    labels: tuple[str, ...]
    probabilities: Scores
    note: str

    def of(self, label: str) -> Scores:
        return self.probabilities[:, self.labels.index(label)]


def run_baseline(
    name: str,
    rows: SplitRows,
    labels: Sequence[str],
    cache: Path,
    *,
    seed: int = 0,
    epochs: int = 8,
    time_limit_s: float | None = None,
    report: Report = print,
) -> BaselineScores:
    """Baseline `hog` or `cnn` for these labels, from the cache where it holds them."""
    if name not in TITLES:
        raise InvalidRequest(f"unknown baseline {name!r}: known are {', '.join(TITLES)}", param="baselines")
    for label in labels:
        if not any(label in row.labels for row in rows.train):
            raise InvalidRequest(f"no training row has the label {label!r}: a baseline cannot learn it", param="labels")
    if name == "hog":
        return _hog(rows, tuple(labels), cache, seed, report)
    return _cnn(rows, tuple(labels), cache, seed, epochs, time_limit_s, report)


def truth_of(rows: Sequence[Row], labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(N, K): whether the row carries the label."""
    return np.array([[label in row.labels for label in labels] for row in rows], dtype=bool).reshape(-1, len(labels))


def load_films(rows: Sequence[Row], size: int = SIZE) -> Films:
    """(N, size, size) grey films, squashed to a square."""
    from foundation.preprocess import InputContract, render
    from foundation.readers import read_film

    contract = InputContract(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation="bilinear", resize_mode="squash")
    films = np.empty((len(rows), size, size), dtype=np.uint8)
    for index, row in enumerate(rows):
        shown = render(read_film(row.image.read_bytes()), contract)
        films[index] = np.asarray(Image.fromarray(shown).convert("L"))
    return films


# --- HOG -------------------------------------------------------------------------------------------------------------


def _hog(rows: SplitRows, labels: tuple[str, ...], cache: Path, seed: int, report: Report) -> BaselineScores:
    """Each label is a model of its own, so the cache is filled label by label."""
    kept = _Cache(cache, "hog", rows, _hog_settings(seed))
    missing = [label for label in labels if label not in kept.columns]
    if missing:
        start = time.process_time()
        train, val, test = _hog_features(rows, seed, report)
        for label in missing:
            kept.columns[label] = _fit_label(label, rows, train, val, test)
        seconds = time.process_time() - start
        kept.save(f"{TITLES['hog']}, {SIZE} px, trained on {len(rows.train)} rows in {seconds:.0f} s of processor time")
        report(f"{TITLES['hog']}: {len(missing)} labels in {seconds:.0f} s of processor time")
    return kept.scores("hog", labels)


def _hog_settings(seed: int) -> Mapping[str, object]:
    return {"size": SIZE, "hog": str(HOG), "components": COMPONENTS, "penalties": PENALTIES, "seed": seed}


def _hog_features(rows: SplitRows, seed: int, report: Report) -> tuple[Scores, Scores, Scores]:
    from sklearn.decomposition import PCA

    train, val, test = (describe(load_films(part)) for part in (rows.train, rows.val, rows.test))
    report(f"described {len(train) + len(val) + len(test)} films by oriented gradients")
    components = min(COMPONENTS, len(train) - 1, train.shape[1])
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(train)
    return pca.transform(train), pca.transform(val), pca.transform(test)


def describe(films: Films) -> npt.NDArray[np.float32]:
    from skimage.feature import hog

    return np.stack([hog(film, feature_vector=True, **HOG) for film in films]).astype(np.float32)


def _fit_label(label: str, rows: SplitRows, train: Scores, val: Scores, test: Scores) -> Scores:
    """Test probabilities under the penalty that ranks `val` best (the strongest one where `val` cannot tell)."""
    from sklearn.linear_model import LogisticRegression

    learnt, chosen = truth_of(rows.train, [label])[:, 0], truth_of(rows.val, [label])[:, 0]
    best, best_score = None, -1.0
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=300).fit(train, learnt)
        score = float(np.nan_to_num(auroc(model.decision_function(val), chosen)[0]))
        if score > best_score:
            best, best_score = model, score
    assert best is not None
    return np.asarray(best.predict_proba(test)[:, 1], dtype=np.float64)


# --- CNN -------------------------------------------------------------------------------------------------------------


def _cnn(
    rows: SplitRows,
    labels: tuple[str, ...],
    cache: Path,
    seed: int,
    epochs: int,
    time_limit_s: float | None,
    report: Report,
) -> BaselineScores:
    """All labels share one network, so the cache is keyed by the set of labels too."""
    ordered = tuple(sorted(labels))
    kept = _Cache(cache, "cnn", rows, {"size": SIZE, "labels": ordered, "epochs": epochs, "seed": seed})
    if not set(labels) <= set(kept.columns):
        start = time.monotonic()
        probabilities, done = _train_cnn(rows, ordered, seed, epochs, time_limit_s, report)
        kept.columns.update(zip(ordered, probabilities.T, strict=True))
        seconds = time.monotonic() - start
        note = f"{TITLES['cnn']}, {SIZE} px, {done} of {epochs} epochs on {len(rows.train)} rows in {seconds:.0f} s"
        if done == epochs:
            kept.save(note)
        return BaselineScores("cnn", labels, np.stack([kept.columns[label] for label in labels], axis=1), note)
    return kept.scores("cnn", labels)


def _train_cnn(
    rows: SplitRows, labels: tuple[str, ...], seed: int, epochs: int, time_limit_s: float | None, report: Report
) -> tuple[Scores, int]:
    """Test probabilities of the epoch with the best mean AUROC on `val`, and the number of epochs run."""
    import torch
    from torch.nn import functional
    from torchvision.models import resnet18

    torch.manual_seed(seed)
    start = time.monotonic()
    films = {part: torch.from_numpy(load_films(getattr(rows, part))) for part in ("train", "val", "test")}
    wanted = torch.from_numpy(truth_of(rows.train, labels)).float()
    model = resnet18(weights=None, num_classes=len(labels)).to(memory_format=torch.channels_last)
    steps = epochs * (-(-len(wanted) // _CNN_BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    best, best_score, done = np.zeros((len(rows.test), len(labels))), -1.0, 0
    for epoch in range(epochs):
        if time_limit_s is not None and epoch and (time.monotonic() - start) * (epoch + 1) / epoch > time_limit_s:
            report(f"stopped after {epoch} of {epochs} epochs: the time limit is {time_limit_s:.0f} s")
            break
        model.train()
        for batch in _batches(len(wanted), seed + epoch):
            with autocast_bf16("cpu"):
                logits = model(_as_input(_shifted(films["train"][batch])))
            loss = functional.binary_cross_entropy_with_logits(logits.float(), wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        done = epoch + 1
        score = _mean_auroc(_predict(model, films["val"]), truth_of(rows.val, labels))
        report(f"epoch {done} of {epochs}: mean AUROC {score:.3f} on val, {time.monotonic() - start:.0f} s")
        if score > best_score:
            best, best_score = _predict(model, films["test"]), score
    return best, done


_CNN_BATCH = 64


def _batches(count: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(count)
    for start in range(0, count, _CNN_BATCH):
        if count - start > 1:  # batch normalisation needs two films
            yield order[start : start + _CNN_BATCH]


def _as_input(films: Any) -> Any:
    """(B, S, S) uint8 -> (B, 3, S, S) float, roughly zero mean and unit variance."""
    import torch

    pixels = ((films.float() - 128.0) / 64.0).unsqueeze(1).expand(-1, 3, -1, -1)
    return pixels.contiguous(memory_format=torch.channels_last)


def _shifted(films: Any, reach: int = 8) -> Any:
    """Each film moved by up to `reach` pixels either way: the one augmentation that is safe for any finding."""
    import torch
    from torch.nn import functional

    size = films.shape[-1]
    padded = functional.pad(films.unsqueeze(1).float(), (reach,) * 4, mode="replicate")[:, 0]
    offsets = torch.randint(0, 2 * reach + 1, (len(films), 2)).tolist()
    return torch.stack([film[y : y + size, x : x + size] for film, (y, x) in zip(padded, offsets, strict=True)])


def _predict(model: Any, films: Any) -> Scores:
    import torch

    model.eval()
    with torch.inference_mode(), autocast_bf16("cpu"):
        parts = [model(_as_input(chunk)).float().sigmoid() for chunk in films.split(128)]
    return np.asarray(torch.cat(parts).double().numpy())


def _mean_auroc(probabilities: Scores, truth: npt.NDArray[np.bool_]) -> float:
    values = np.array([auroc(probabilities[:, k], truth[:, k])[0] for k in range(truth.shape[1])])
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else 0.0


# --- cache -----------------------------------------------------------------------------------------------------------


class _Cache:
    """Predictions of one baseline on one set of rows: `NAME-DIGEST.npz` (a column a label) and `.json` (the note)."""

    def __init__(self, folder: Path, name: str, rows: SplitRows, settings: Mapping[str, object]) -> None:
        key = json.dumps([rows.digest, settings], sort_keys=True, default=str)
        self._path = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
        self._settings = dict(settings)
        self.columns: dict[str, Scores] = {}
        self.note = ""
        if self._path.is_file():
            with np.load(self._path, allow_pickle=False) as kept:
                self.columns = {label: kept[label] for label in kept.files}
            self.note = json.loads(self._path.with_suffix(".json").read_text(encoding="utf-8"))["note"]

    def save(self, note: str) -> None:
        self.note = note
        about = {"note": note, "settings": self._settings}
        with whole(self._path.with_suffix(".json")) as partial:  # first: whoever finds the columns reads the note
            partial.write_text(json.dumps(about, default=str, indent=1) + "\n", encoding="utf-8")
        with whole(self._path) as partial:
            np.savez_compressed(partial, **self.columns)  # type: ignore[arg-type]  # no label is called allow_pickle

    def scores(self, name: str, labels: tuple[str, ...]) -> BaselineScores:
        return BaselineScores(name, labels, np.stack([self.columns[label] for label in labels], axis=1), self.note)
