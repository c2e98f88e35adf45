"""Means of curves over seeds."""

from collections.abc import Sequence

import numpy as np

Points = Sequence[tuple[float, float]]


def mean_curve(curves: Sequence[Points]) -> list[tuple[float, float]]:
    """Average curves over the vertical axis, exactly: steps stay steps.

    Args:
        curves: Points of each curve by ascending ``x``; equal ``x`` are a vertical step. One point or more each.

    Returns:
        The mean, up to the smallest last ``x`` of the curves.
    """
    if len(curves) == 1:
        return list(curves[0])
    ordered = [np.array(curve, np.float64) for curve in curves]
    end = min(points[-1, 0] for points in ordered)
    grid = np.unique(np.concatenate([points[:, 0] for points in ordered]))
    mean: list[tuple[float, float]] = []
    for x in grid[grid <= end].tolist():
        for side in (0, -1):  # the value before a step at x, and the one behind it
            point = (x, float(np.mean([_value(points, x, side) for points in ordered])))
            if not mean or mean[-1] != point:
                mean.append(point)
    return mean


def _value(points: np.ndarray, x: float, side: int) -> float:
    here = points[points[:, 0] == x, 1]
    return float(here[side] if here.size else np.interp(x, points[:, 0], points[:, 1]))
