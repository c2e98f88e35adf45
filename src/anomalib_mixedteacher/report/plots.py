"""The report's plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from anomalib_mixedteacher.report.columns import significant
from anomalib_mixedteacher.report.curves import Points
from anomalib_mixedteacher.report.style import Style
from anomalib_mixedteacher.report.svg import Plane

_BINS = 30
_TAIL = 4  # a histogram ends at so many times the distance of the threshold from the lowest score
_LABEL_HEIGHT = 14


def swatch(style: Style) -> Markup:
    """Draw a model's line and marker for a legend."""
    line = Markup('<path d="M1,7 H33" stroke="{}" stroke-dasharray="{}"/>').format(style.colour, style.dash)
    head = Markup('<svg class="swatch" viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">')
    return head + line + style.marker(17, 7, 4.5) + Markup("</svg>")


def scatter(points: Mapping[str, tuple[float, float]], styles: Mapping[str, Style], y_label: str) -> Markup:
    """Draw accuracy against latency.

    Args:
        points: Latency in milliseconds and accuracy in ``[0, 1]`` by model, one or more.
        styles: How each model is drawn.
        y_label: Name of the accuracy.
    """
    longest = max(x for x, _ in points.values())
    low, high = min(y for _, y in points.values()), max(y for _, y in points.values())
    pad = max(0.05, 0.15 * (high - low))
    plane = Plane((0, 1.15 * longest or 1), (max(0, low - pad), min(1, high + pad)), 520, 330)
    drawn, placed = [], list[tuple[float, float]]()
    for model, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        across, down = plane.at(x, y)
        leftwards = across > 0.62 * plane.width
        below = down + 4
        while any(abs(below - other) < _LABEL_HEIGHT and abs(across - where) < 150 for where, other in placed):
            below += _LABEL_HEIGHT
        placed.append((across, below))
        label = Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
            across + (-11 if leftwards else 11), below, "end" if leftwards else "start", model
        )
        hover = Markup("<title>{}: {} ms, {:.3f}</title>").format(model, significant(x), y)
        drawn.append(Markup("<g>{}{}{}</g>").format(hover, styles[model].marker(across, down), label))
    described = ", ".join(f"{model} {significant(x)} ms and {y:.3f}" for model, (x, y) in points.items())
    frame = plane.frame("latency of one image in ms (less is better)", y_label)
    return plane.svg(f"{y_label} against latency: {described}", frame, *drawn)


def curves(lines: Mapping[str, Points], styles: Mapping[str, Style], title: str, x: str, y: str) -> Markup:
    """Draw one curve for each model in a square that ends where the longest one does.

    Args:
        lines: Points by model, one line or more.
        styles: How each model is drawn.
        title: Read aloud instead of the plot.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
    """
    end = max((points[-1][0] for points in lines.values()), default=1) or 1
    plane = Plane((0, end), (0, 1), 340, 300)
    drawn = [
        Markup('<path class="curve" d="{}" stroke="{}" stroke-dasharray="{}"><title>{}</title></path>').format(
            plane.path(points), styles[model].colour, styles[model].dash, model
        )
        for model, points in lines.items()
    ]
    chance = Markup('<path class="chance" d="{}"/>').format(plane.path([(0, 0), (end, end)]))
    return plane.svg(title, plane.frame(x, y), chance, *drawn)


@dataclass(frozen=True)
class Histogram:
    """A plot of scores, and what it shows in words."""

    plot: Markup
    text: str


def histogram(model: str, good: NDArray, bad: NDArray, threshold: float | None) -> Histogram:
    """Draw the distribution of a model's scores, each class as shares of its own images.

    Args:
        model: Name of the model.
        good: Finite scores of good images, ``(N,)``.
        bad: Finite scores of defective ones, ``(M,)``; one of both has an element.
        threshold: The calibrated threshold.
    """
    everything = np.concatenate([good, bad, [] if threshold is None else [threshold]]).astype(np.float64)
    low, high = float(everything.min()), float(everything.max())
    end = high
    if threshold is not None and threshold > low:
        end = min(high, low + _TAIL * (threshold - low))
    if end <= low:
        low, end = low - 0.5 * (abs(low) or 1), low + 0.5 * (abs(low) or 1)
    margin = 0.02 * (end - low)  # so that the lines of the outermost bins and the threshold are not on the frame
    edges = np.linspace(low, end, _BINS + 1)
    shares = {
        name: np.histogram(np.clip(values, low, end), edges)[0] / max(1, len(values))
        for name, values in (("good", good), ("bad", bad))
    }
    top = max(values.max() for values in shares.values())
    plane = Plane((low - margin, end + margin), (0, 1.08 * top), 300, 190)
    drawn = [
        Markup('<path class="{}" d="{}"/>').format(name, plane.path(_outline(edges, values)))
        for name, values in shares.items()
        if values.any()
    ]
    x_ticks = [(low, significant(low)), (end, ("≥ " if high > end else "") + significant(end))]
    if threshold is not None:
        x, bottom = plane.at(threshold, 0)
        drawn.append(Markup('<path class="threshold" d="M{:.1f},{:.1f} V12"/>').format(x, bottom))
        near = (threshold - low) / (end - low)
        x_ticks = [tick for tick, where in zip(x_ticks, (near, 1 - near), strict=True) if where > 0.2]
        x_ticks.append((threshold, significant(threshold)))
    y_ticks = [(0, "0"), (top, f"{100 * top:.0f} %")]
    text = _in_words(good, bad, threshold)
    frame = plane.frame("score", "share of images", x_ticks, y_ticks)
    return Histogram(plane.svg(f"Scores of {model}. {text}", frame, *drawn), text)


def _in_words(good: NDArray, bad: NDArray, threshold: float | None) -> str:
    if threshold is None:
        return f"{len(good)} good and {len(bad)} defective images; no threshold."
    named = {"good": good, "defective": bad}
    above = [f"{(scores > threshold).sum()} of {len(scores)} {name}" for name, scores in named.items() if len(scores)]
    return f"Above the threshold: {', '.join(above)}."


def _outline(edges: NDArray, values: NDArray) -> Sequence[tuple[float, float]]:
    corners = np.repeat(edges, 2)[1:-1]
    points = zip(corners.tolist(), np.repeat(values, 2).tolist(), strict=True)
    return [(float(edges[0]), 0.0), *points, (float(edges[-1]), 0.0)]
