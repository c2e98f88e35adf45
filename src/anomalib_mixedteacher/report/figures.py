"""Plots of a run, each with what its reader must know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.report.columns import BY_NAME
from anomalib_mixedteacher.report.curves import mean_curve
from anomalib_mixedteacher.report.data import Run
from anomalib_mixedteacher.report.kept import Kept
from anomalib_mixedteacher.report.plots import curves, histogram, scatter
from anomalib_mixedteacher.report.style import Style
from anomalib_mixedteacher.report.table import averaged_over, overall

_ACCURACY = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC"}
_CURVES = {
    "roc": ("ROC of images", "image_AUROC", "false positive rate", "true positive rate"),
    "pro": ("PRO of regions", "PRO", "false positive rate of pixels", "region overlap"),
}


@dataclass(frozen=True)
class Figure:
    """A plot with its heading, a line below it, and sentences on what it lacks.

    ``plot`` is ``None`` where there is nothing to draw.
    """

    title: str
    plot: Markup | None
    text: str
    missing: Sequence[str] = ()


def tradeoff(run: Run, styles: Mapping[str, Style]) -> Figure:
    """Plot accuracy against latency, both as the verdict table gives them."""
    name = next((n for n in _ACCURACY if averaged_over(run, BY_NAME[n])), "")
    points, missing = {}, []
    for model in styles:
        values = [overall(run, model, BY_NAME[n]) for n in (name or "image_AUROC", "latency_ms")]
        accuracy, latency = values
        if accuracy.mean is not None and latency.mean is not None:
            points[model] = latency.mean, accuracy.mean
        else:
            notes = dict.fromkeys(note for value in values if value.mean is None for note in value.notes)
            missing.append(f"{model}: {' '.join(notes)}")
    label = _ACCURACY.get(name, "")
    plot = scatter(points, styles, label) if points else None
    return Figure("Accuracy against latency", plot, f"Top left is best: {label} for the time of one image.", missing)


def curve_figures(run: Run, data: str, styles: Mapping[str, Style]) -> list[Figure]:
    """Plot a data set's ROC and PRO curves."""
    return [_curve_figure(run, data, styles, kind) for kind in _CURVES]


def _curve_figure(run: Run, data: str, styles: Mapping[str, Style], kind: str) -> Figure:
    title, metric, x, y = _CURVES[kind]
    lines, missing, seeds = {}, [], set[int]()
    for model in styles:
        found = {r.cell.seed: r.curves[kind] for r in run.of(model, data) if r.curves.get(kind)}
        if found:
            lines[model] = mean_curve(list(found.values()))
            seeds |= set(found)
        else:
            reasons = [run.reason(result, metric) for result in run.of(model, data)]
            missing.append(f"{model}: {' '.join(dict.fromkeys(reasons)) or 'no training finished.'}")
    plot = curves(lines, styles, f"{title} on {data}: {', '.join(lines)}", x, y) if lines else None
    text = f"Mean over {len(seeds)} seeds." if len(seeds) > 1 else f"Seed {next(iter(seeds))}." if seeds else ""
    return Figure(title, plot, text, missing)


def histograms(kept: Kept) -> list[Figure]:
    """Plot the scores of each model on a data set."""
    figures = []
    for model, predictions in kept.predictions.items():
        scores, good = np.asarray(predictions.scores, np.float64), np.array(predictions.kinds) == GOOD
        finite = np.isfinite(scores)
        if not finite.any():
            figures.append(Figure(model, None, "No score is a finite number."))
            continue
        drawn = histogram(model, scores[finite & good], scores[finite & ~good], kept.calibrations[model].image)
        figures.append(Figure(model, drawn.plot, drawn.text))
    return figures
