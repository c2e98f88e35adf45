"""The report's plots as data URIs of SVG images. No name is in them that could be cut: it stands beside."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomalib_mixedteacher.benchmark.result import Points

# Okabe and Ito's colours, without the yellow, which is too faint on white
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#333333")
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "D", "^", "p", "s")
_BINS = 30
_TAIL = 4  # a histogram ends at so many times the distance of the threshold from the lowest score
_GOOD, _BAD, _INK = "#5b7aa0", "#c2540a", "#1b2330"


@dataclass(frozen=True)
class Style:
    """How a model is drawn, as matplotlib takes it."""

    color: str
    linestyle: Any
    marker: str


def styles(models: Sequence[str]) -> dict[str, Style]:
    """Give each model a style; the first 35 differ in colour and line both, so that colour alone never has to do."""
    return {
        model: Style(_COLOURS[i % len(_COLOURS)], _LINES[i % len(_LINES)], _MARKERS[i % len(_MARKERS)])
        for i, model in enumerate(models)
    }


def swatch(style: Style) -> str:
    """Draw a model's line and marker for a legend, as a data URI."""
    figure = Figure(figsize=(0.5, 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.plot([0, 1, 2], [0, 0, 0], color=style.color, linestyle=style.linestyle)
    axes.plot([1], [0], color=style.color, marker=style.marker)
    return _uri(figure)


def scatter(points: Mapping[str, tuple[float, float]], styles: Mapping[str, Style], y_label: str) -> str:
    """Draw accuracy in ``[0, 1]`` against latency in milliseconds, of one model or more."""
    figure, axes = _axes((5.6, 3.5), "latency of one image in ms (less is better)", y_label)
    for model, (x, y) in points.items():
        axes.plot([x], [y], color=styles[model].color, marker=styles[model].marker, markersize=9, linestyle="")
    low, high = min(y for _, y in points.values()), max(y for _, y in points.values())
    pad = max(0.02, 0.15 * (high - low))
    axes.set_ylim(max(0, low - pad), min(1.005, high + pad))
    axes.set_xlim(0, 1.1 * max(x for x, _ in points.values()) or 1)
    return _uri(figure)


def curves(lines: Mapping[str, Sequence[Points]], styles: Mapping[str, Style], x_label: str, y_label: str) -> str:
    """Draw for each model the mean of its curves over seeds."""
    figure, axes = _axes((3.6, 3.3), x_label, y_label)
    for model, found in lines.items():
        axes.plot(*mean_curve(found), color=styles[model].color, linestyle=styles[model].linestyle)
    end = axes.dataLim.x1 or 1
    axes.plot([0, end], [0, end], color="#98a2b0", linestyle=(0, (1, 4)), zorder=0)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.01)
    return _uri(figure)


def mean_curve(found: Sequence[Points]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average curves by ascending ``x`` over the vertical axis, up to where the first one ends."""
    arrays = [np.array([(0, 0), *points], np.float64).T for points in found]
    end = min(x[-1] for x, _ in arrays)
    ends = np.concatenate([x for x, _ in arrays])
    grid = np.unique(np.concatenate([ends, ends - 1e-9]).clip(0, end))  # just before each step as well
    return np.append(0, grid), np.append(0, np.mean([np.interp(grid, x, y) for x, y in arrays], axis=0))


def histogram(good: NDArray[Any], bad: NDArray[Any], threshold: float | None) -> str:
    """Draw the distribution of a model's finite scores, each class as shares of its own images.

    Scores far beyond the threshold are gathered in the last bar.
    """
    scores = np.concatenate([good, bad, [] if threshold is None else [threshold]])
    low, high = float(scores.min()), float(scores.max())
    if threshold is not None and threshold > low:
        high = min(high, low + _TAIL * (threshold - low))
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), low + 0.5 * (abs(low) or 1)
    figure, axes = _axes((3.2, 2.0), "score", "share of images")
    for values, color, kind in ((good, _GOOD, "stepfilled"), (bad, _BAD, "step")):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            shown: dict[str, Any] = {"histtype": kind, "alpha": 0.45 if kind == "stepfilled" else 1, "linewidth": 1.8}
            axes.hist(np.clip(values, low, high), bins=_BINS, range=(low, high), weights=weights, color=color, **shown)
    if threshold is not None:
        axes.axvline(threshold, color=_INK, linestyle="--", linewidth=1.2)
    return _uri(figure)


def _axes(size: tuple[float, float], x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    axes = figure.add_axes((0.62 / size[0], 0.5 / size[1], 1 - 0.72 / size[0], 1 - 0.58 / size[1]))
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=5)
    axes.grid(color="#e8ecf1")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _uri(figure: Figure) -> str:
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "report"}):  # the same run gives the same file
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
