"""Does the budget hold? Thresholds from many random halves of the good images, judged on the other halves.

mixedteacher benchmark PLAN.yaml --output RUN && python benchmarks/alarms.py RUN

Good images are the validation and test images of a benchmark's first seed. "Expected" is what the theorem gives for so
many images; ± is the standard error over the splits.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from anomalib.metrics.threshold.f1_adaptive_threshold import _F1AdaptiveThreshold  # the public one takes batches only
from jsonargparse import auto_cli
from numpy.typing import NDArray

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from common import table
from mixedteacher_edge.conformal import conformal_rank, conformal_threshold, next_above

Scores = NDArray[np.float64]
Way = Callable[[Scores, Scores], float]
HEAD = ["threshold", "expected rate", "realised rate", "5 % to 95 % of splits", "defects found"]


def main(run: Path, splits: int = 200, budgets: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02)) -> None:
    """Print a table for each model and data set.

    Args:
        run: Folder of a benchmark.
        splits: Random halves.
        budgets: Shares of good images that may raise an alarm.
    """
    folder = RunFolder(run)
    results = folder.results()
    for result in results:
        if result.cell.seed == results[0].cell.seed:
            kept = folder.predictions(result.cell)
            is_good = np.array(kept.kinds) == GOOD
            good = np.concatenate([kept.good_scores, kept.scores[is_good]]).astype(np.float64)
            defects = kept.scores[~is_good].astype(np.float64)
            print(f"### {result.cell.model}, {result.cell.data}: {len(good)} good, {len(defects)} defective\n")
            print(f"{table(HEAD, compare(good, defects, budgets, splits))}\n")


def compare(good: Scores, defects: Scores, budgets: tuple[float, ...], splits: int) -> list[list[str]]:
    """Deal the good images' scores out into halves, and set thresholds on one and judge them on the other.

    Returns:
        A row for the conformal threshold at each budget that the images allow, for the maximum of the calibration
        scores, and for anomalib's F1-adaptive threshold, which alone is given half of the defects as well.
    """
    half = len(good) // 2
    ways: dict[str, tuple[float | None, Way]] = {}
    for budget in budgets:
        if budget * (half + 1) >= 1:
            promised = 1 - conformal_rank(half, budget) / (half + 1)
            ways[f"conformal, {budget:g}"] = promised, partial(_conformal, budget)
    ways["maximum of the calibration scores"] = 1 / (half + 1), lambda known, _: next_above(known.max())
    ways["F1-adaptive, with half of the defects"] = None, _f1_adaptive
    outcomes: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for split in range(splits):
        rng = np.random.default_rng(split)
        order = rng.permutation(len(good))
        known, new = good[order[:half]], good[order[half:]]
        labelled = rng.permutation(defects)[: len(defects) // 2]
        for name, (_, way) in ways.items():
            threshold = way(known, labelled)
            outcomes[name].append((float((new >= threshold).mean()), float((defects >= threshold).mean())))
    rows = []
    for name, (expected, _) in ways.items():
        rates, found = np.array(outcomes[name]).T
        low, high = np.quantile(rates, [0.05, 0.95])
        error = rates.std(ddof=1) / math.sqrt(splits)
        realised = [f"{rates.mean():.4f} ± {error:.4f}", f"{low:.3f} to {high:.3f}", f"{found.mean():.3f}"]
        rows.append([name, "none" if expected is None else f"{expected:.4f}", *realised])
    return rows


def _conformal(budget: float, known: Scores, labelled: Scores) -> float:
    del labelled
    return conformal_threshold(known, budget)


def _f1_adaptive(known: Scores, labelled: Scores) -> float:
    metric = _F1AdaptiveThreshold()
    scores = torch.from_numpy(np.concatenate([known, labelled])).float()
    metric.update(scores, torch.tensor([0] * len(known) + [1] * len(labelled)))
    return float(metric.compute())


if __name__ == "__main__":
    auto_cli(main)
