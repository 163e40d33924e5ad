"""From raw outputs to probabilities and decisions, fitted on the validation split. Numpy only.

Platt scaling per label with Platt's own prior-corrected targets (Platt 1999; Lin, Lin, Weng 2007), one temperature
for multi-class outputs (Guo 2017), and thresholds that maximise F1: with rare findings a balanced-accuracy threshold
would call every third normal film ill.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adapters.card import Calibration

Floats = npt.NDArray[np.float64]

MIN_SLOPE = 0.05  # a label that validation finds uninformative stays uninformative; it is never turned round


def calibrate_labels(
    logits: Floats, truth: npt.NDArray[np.float32], exclusive: Sequence[Sequence[int]], split: str
) -> tuple[Calibration, tuple[float, ...]]:
    """Calibration and thresholds for columns of which some are classes of a group; truth (N, K) holds NaN for unknown.

    A single group of all columns takes a temperature. Otherwise every column has a slope and a bias: free labels
    by Platt, the classes of a group by its temperature and no bias.
    """
    count = logits.shape[1]
    if len(exclusive) == 1 and len(exclusive[0]) == count:
        return fit_temperature(logits, truth.argmax(axis=1), split), ()
    slope, bias, thresholds = np.ones(count), np.zeros(count), np.full(count, 0.5)
    for columns in map(list, exclusive):
        known = ~np.isnan(truth[:, columns]).any(axis=1)
        slope[columns] = fit_temperature(logits[known][:, columns], truth[known][:, columns].argmax(axis=1), split).slope[0]
    for k in set(range(count)) - {column for columns in exclusive for column in columns}:
        known = ~np.isnan(truth[:, k])
        one, held = logits[known, k], truth[known, k].astype(np.float64)
        slope[k], bias[k] = _platt_one(one, held)
        thresholds[k] = _best_f1(np.asarray(_sigmoid(slope[k] * one + bias[k])), held > 0.5)
    return Calibration("platt", tuple(slope.tolist()), tuple(bias.tolist()), split, len(logits)), tuple(thresholds.tolist())


def fit_platt(logits: Floats, truth: Floats, split: str) -> Calibration:
    """logits, truth (N, K) -> one slope and bias for each label; probability = sigmoid(slope * logit + bias)."""
    pairs = [_platt_one(logits[:, k], truth[:, k]) for k in range(logits.shape[1])]
    slopes, biases = zip(*pairs, strict=True)
    return Calibration("platt", tuple(slopes), tuple(biases), split, len(logits))


def fit_temperature(logits: Floats, classes: npt.NDArray[np.int64], split: str) -> Calibration:
    """The one slope (1 / temperature) under which the true classes are most likely, by golden-section search."""
    low, high = np.log(1e-2), np.log(1e2)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _cross_entropy(np.exp(left) * logits, classes) < _cross_entropy(np.exp(right) * logits, classes):
            high = right
        else:
            low = left
    return Calibration("temperature", (float(np.exp((low + high) / 2)),), (), split, len(logits))


def fit_thresholds(probabilities: Floats, truth: Floats) -> tuple[float, ...]:
    """For each label the probability from which calling it gives the best F1; 0.5 where there is no positive."""
    return tuple(_best_f1(probabilities[:, k], truth[:, k] > 0.5) for k in range(probabilities.shape[1]))


def _platt_one(logits: Floats, truth: Floats) -> tuple[float, float]:
    """Newton's method on the convex negative log likelihood, on standardised logits."""
    mean, spread = float(logits.mean()), float(logits.std()) or 1.0
    x = (logits - mean) / spread
    positives = float(truth.sum())
    negatives = len(truth) - positives
    target = np.where(truth > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope, bias = 0.0, float(np.log((positives + 1) / (negatives + 1)))
    for _ in range(100):
        p = _sigmoid(slope * x + bias)
        weight = np.maximum(p * (1 - p), 1e-9)
        gradient = np.array([np.sum((p - target) * x), np.sum(p - target)])
        hessian = np.array([[np.sum(weight * x * x), np.sum(weight * x)], [np.sum(weight * x), np.sum(weight)]])
        step = np.linalg.solve(hessian + 1e-6 * np.eye(2), gradient)
        step *= min(1.0, 4.0 / float(np.abs(step).max() + 1e-12))
        slope, bias = slope - float(step[0]), bias - float(step[1])
        if np.abs(step).max() < 1e-8:
            break
    if slope < MIN_SLOPE:
        slope, bias = MIN_SLOPE, float(np.log((positives + 1) / (negatives + 1)))
    return slope / spread, bias - slope * mean / spread


def _best_f1(probabilities: Floats, truth: npt.NDArray[np.bool_]) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    values = probabilities[order]
    is_edge = np.append(values[1:] < values[:-1], True)  # a threshold cannot lie inside a run of equal values
    best = int(np.argmax(np.where(is_edge, f1, -1.0)))
    below = values[best + 1] if best + 1 < len(values) else values[best]
    return float((values[best] + below) / 2)


def _cross_entropy(scores: Floats, classes: npt.NDArray[np.int64]) -> float:
    top = scores.max(axis=1)
    total = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return float((total - scores[np.arange(len(classes)), classes]).mean())


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
