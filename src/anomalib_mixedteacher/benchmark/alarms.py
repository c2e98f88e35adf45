"""Does the budget hold? Thresholds from many random halves of the good images, judged on the other halves.

Run ``python -m anomalib_mixedteacher.benchmark.alarms MODEL.xml --data MagneticTile --root ROOT --output FOLDER``. The
images are scored once; a split only deals the scores out.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import torch
from anomalib.data import AnomalibDataModule
from anomalib.metrics.threshold.f1_adaptive_threshold import _F1AdaptiveThreshold
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomalib_mixedteacher import MagneticTile, SyntheticTextures
from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.benchmark.scores import image_kinds
from anomalib_mixedteacher.export.quality import batches, compile_exactly
from mixedteacher_edge.conformal import conformal_rank, conformal_threshold, next_above
from mixedteacher_edge.graph import raw

BUDGETS = (0.2, 0.1, 0.05, 0.02)
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What one way to set a threshold gave over many splits.

    Attributes:
        name: The way.
        promised: Alarm rate that it is expected to have, if it promises one: for the conformal threshold
            ``1 - k / (n + 1)``, at or below the budget.
        rates: Realised alarm rate on the good images that were not calibrated on, one for each split.
        recall: Share of defects found, by kind, averaged over the splits.
    """

    name: str
    promised: float | None
    rates: Scores
    recall: dict[str, float]

    @property
    def standard_error(self) -> float:
        """Standard error of the mean rate over the splits."""
        return float(self.rates.std(ddof=1) / math.sqrt(len(self.rates)))


def score(model: Path, datamodule: AnomalibDataModule) -> dict[str, Scores]:
    """Score the images that the model was not trained on.

    Args:
        model: A model that this package exported, trained on the datamodule's training images.
        datamodule: A datamodule that was set up.

    Returns:
        Raw scores by kind: ``"good"`` and each kind of defect.
    """
    compiled = compile_exactly(raw(openvino.Core().read_model(model)))
    found: dict[str, list[float]] = {}
    for data in (datamodule.val_data, datamodule.test_data):
        for kind, (images, _) in zip(image_kinds(data.samples), batches(data, None), strict=True):
            found.setdefault(kind, []).append(float(compiled(images)["pred_score"].item()))
    return {kind: np.array(values) for kind, values in found.items()}


def compare(scores: dict[str, Scores], budgets: Sequence[float] = BUDGETS, splits: int = 200) -> list[Outcome]:
    """Deal the good images' scores out into halves, and set thresholds on one and judge them on the other.

    Args:
        scores: What :func:`score` returned.
        budgets: Alarm rates for the conformal threshold.
        splits: Number of random splits.

    Returns:
        The conformal threshold at each budget, the maximum of the calibration scores, and anomalib's F1-adaptive
        threshold, which alone is given half of the defects as well.
    """
    good, defects = scores[GOOD], {kind: values for kind, values in scores.items() if kind != GOOD}
    half = len(good) // 2
    ways: dict[str, tuple[float | None, Callable[[Scores, Scores], float]]] = {}
    for budget in budgets:
        promised = 1 - conformal_rank(half, budget) / (half + 1)
        ways[f"conformal, {budget:g}"] = promised, lambda known, _, budget=budget: conformal_threshold(known, budget)  # type: ignore[misc]
    ways["maximum of the calibration scores"] = 1 / (half + 1), lambda known, _: next_above(known.max())
    ways["F1-adaptive, with half of the defects"] = None, _f1_adaptive
    rates: dict[str, list[float]] = {name: [] for name in ways}
    recalls: dict[str, list[list[float]]] = {name: [] for name in ways}
    for split in range(splits):
        rng = np.random.default_rng(split)
        order = rng.permutation(len(good))
        known, new = good[order[:half]], good[order[half:]]
        labelled = np.concatenate([rng.permutation(values)[: len(values) // 2] for values in defects.values()])
        for name, (_, way) in ways.items():
            threshold = way(known, labelled)
            rates[name].append(float((new >= threshold).mean()))
            recalls[name].append([float((values >= threshold).mean()) for values in defects.values()])
    return [
        Outcome(name, promised, np.array(rates[name]), dict(zip(defects, np.mean(recalls[name], axis=0), strict=True)))
        for name, (promised, _) in ways.items()
    ]


def _f1_adaptive(known: Scores, labelled: Scores) -> float:
    metric = _F1AdaptiveThreshold()  # the public one takes anomalib's batches only
    scores = torch.from_numpy(np.concatenate([known, labelled])).float()
    metric.update(scores, torch.tensor([0] * len(known) + [1] * len(labelled)))
    return float(metric.compute())


def table(outcomes: Sequence[Outcome]) -> str:
    """Write outcomes as a Markdown table."""
    kinds = list(outcomes[0].recall)
    header = ["threshold", "expected rate", "realised rate", "5 % to 95 % of splits", *[f"found: {k}" for k in kinds]]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    for outcome in outcomes:
        low, high = np.quantile(outcome.rates, [0.05, 0.95])
        cells = [
            outcome.name,
            "none" if outcome.promised is None else f"{outcome.promised:.4f}",
            f"{outcome.rates.mean():.4f} ± {outcome.standard_error:.4f}",
            f"{low:.3f} to {high:.3f}",
            *[f"{outcome.recall[kind]:.2f}" for kind in kinds],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(outcomes: Sequence[Outcome], path: Path, title: str) -> None:
    """Draw the realised alarm rates of all splits.

    Args:
        outcomes: What :func:`compare` returned.
        path: The PNG file to write.
        title: Title of the plot.
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.boxplot([outcome.rates for outcome in outcomes], orientation="horizontal", whis=(5, 95), showfliers=False)
    for position, outcome in enumerate(outcomes, start=1):
        if outcome.promised is not None:
            axes.plot([outcome.promised] * 2, [position - 0.35, position + 0.35], color="#d1661f", linewidth=2)
    axes.set_yticks(range(1, len(outcomes) + 1), [outcome.name for outcome in outcomes])
    axes.invert_yaxis()
    axes.set_xlabel("false alarms, share of new good images\n(box: quartiles; whiskers: 5 % and 95 %; line: expected)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=140)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="alarms", description=__doc__)
    parser.add_argument("model", type=Path, help="the exported model's .xml file")
    parser.add_argument("--data", choices=["MagneticTile", "SyntheticTextures"], default="SyntheticTextures")
    parser.add_argument("--root", type=Path, help="folder of the data set")
    parser.add_argument("--test-good", type=int, default=400, help="good test images of the synthetic textures")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True, help="PNG file of the plot")
    settings = parser.parse_args()
    datamodule: AnomalibDataModule
    if settings.data == "MagneticTile":
        datamodule = MagneticTile(root=settings.root, eval_batch_size=1)
    else:
        datamodule = SyntheticTextures(root=settings.root, num_test_good=settings.test_good, num_defects_per_kind=20)
    datamodule.prepare_data()
    datamodule.setup()
    scores = score(settings.model, datamodule)
    outcomes = compare(scores, splits=settings.splits)
    print(f"{settings.data}: {', '.join(f'{len(values)} {kind}' for kind, values in scores.items())}\n")
    print(table(outcomes))
    plot(outcomes, settings.output, f"{settings.data}, {settings.splits} splits of {len(scores['good'])} good images")


if __name__ == "__main__":
    main()
