"""Plots of a report as PNG bytes: reliability curves, intervals beside one another, lines. Draws without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from training.measuring.metrics import Estimate, ReliabilityCurve
from training.measuring.report import Plot

DOTS_PER_INCH = 110


def reliability_plot(name: str, title: str, curves: Mapping[str, ReliabilityCurve]) -> Plot:
    """Observed frequency over mean predicted probability; on the diagonal a probability means what it says."""
    figure, axes = _figure(5.2, 4.6)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    for label, curve in curves.items():
        axes.plot(curve.predicted, curve.observed, marker="o", markersize=3, linewidth=1, label=label)
    axes.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1), title=title)
    axes.legend(fontsize=6, ncols=2, loc="upper left", frameon=False)
    return Plot(name, title, _png(figure))


def interval_plot(
    name: str,
    title: str,
    labels: Sequence[str],
    by: Mapping[str, Sequence[Estimate]],
    *,
    axis: str = "AUROC",
    chance: float | None = 0.5,
) -> Plot:
    """One row a label, one mark a model, whiskers over the 95 % interval. by: model -> an estimate for each label."""
    figure, axes = _figure(7.0, 1.2 + 0.34 * len(labels))
    for place, (model, estimates) in enumerate(by.items()):
        offset = (place - (len(by) - 1) / 2) * 0.22
        shown = [(row + offset, one) for row, one in enumerate(estimates) if one.value == one.value]
        values = [one.value for _, one in shown]
        reach = [[max(0.0, one.value - one.low) if one.low == one.low else 0.0 for _, one in shown]]
        reach += [[max(0.0, one.high - one.value) if one.high == one.high else 0.0 for _, one in shown]]
        axes.errorbar(values, [row for row, _ in shown], xerr=reach, fmt="o", markersize=4, linewidth=1, label=model)
    if chance is not None:
        axes.axvline(chance, color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f"{axis} (95 % interval, patients resampled)", title=title)
    axes.legend(fontsize=7, loc="lower left", frameon=False)
    return Plot(name, title, _png(figure))


def curve_plot(
    name: str, title: str, xlabel: str, ylabel: str, curves: Mapping[str, Sequence[float]], x: Sequence[float] = ()
) -> Plot:
    """One line a name over `x`, or over 1, 2, 3 ... where it is left out."""
    figure, axes = _figure(5.2, 3.8)
    for label, values in curves.items():
        axes.plot(x or range(1, len(values) + 1), values, marker="" if x else "o", markersize=4, linewidth=1, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(fontsize=7, frameon=False)
    return Plot(name, title, _png(figure))


def band_plot(
    name: str, title: str, xlabel: str, ylabel: str, curves: Mapping[str, Sequence[Estimate]], x: Sequence[float]
) -> Plot:
    """One line a name over `x`, with its 95 % intervals as a band."""
    figure, axes = _figure(5.2, 3.8)
    for label, estimates in curves.items():
        [line] = axes.plot(x, [one.value for one in estimates], marker="o", markersize=4, linewidth=1, label=label)
        bounds = [one.low for one in estimates], [one.high for one in estimates]
        axes.fill_between(x, *bounds, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=f"{xlabel} (bands: 95 % intervals, patients resampled)", ylabel=ylabel, title=title, xticks=x)
    axes.legend(fontsize=7, frameon=False)
    return Plot(name, title, _png(figure))


@dataclass(frozen=True, eq=False)
class FilmPicture:
    """One film (H, W) in grey with a title; outlines (H, W) masks drawn as contours by name, heat (H, W) in 0..1 laid over."""

    title: str
    film: npt.NDArray[np.uint8]
    outlines: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    heat: npt.NDArray[np.float32] | None = None


def films_plot(name: str, title: str, pictures: Sequence[FilmPicture], columns: int) -> Plot:
    """Films beside one another. NOTE: it shows films; call it `films-...`, which version control leaves out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.7 * rows + 0.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, picture in zip(figure.subplots(rows, columns, squeeze=False).ravel(), pictures, strict=False):
        axes.imshow(picture.film, cmap="gray", vmin=0, vmax=255)
        if picture.heat is not None:
            axes.imshow(picture.heat, cmap="inferno", vmin=0.5, vmax=1.0, alpha=np.clip(2 * picture.heat - 1, 0, 1) * 0.6)
        for place, (_, mask) in enumerate(picture.outlines.items()):
            if mask.any() and not mask.all():
                axes.contour(mask, levels=[0.5], colors=[("tab:green", "tab:red", "tab:blue")[place % 3]], linewidths=0.8)
        axes.set_title(picture.title, fontsize=7)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return Plot(name, title, _png(figure))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
