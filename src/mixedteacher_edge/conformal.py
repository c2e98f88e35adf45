"""Split-conformal calibration: thresholds and p-values from the scores of held-out good images.

If calibration images and future good images are exchangeable, a future good image's score is as likely to take any
place among the calibration scores as any other. So the k-th smallest of n scores is exceeded by a share of good images
that averages ``1 - k / (n + 1)`` at most, whatever the scores' distribution (Vovk, Gammerman, Shafer 2005, ch. 2; Lei
et al. 2018, theorem 2.2). A score at the threshold is an alarm, so the threshold is the next float32 above that score:
models give float32, of which none lies between the two.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixedteacher_edge.errors import CalibrationError

FAR_OUT = 3.0  # Tukey's fence for values that are "far out", in interquartile ranges


def check_alarm_rate(alarm_rate: float) -> float:
    """Refuse a budget that is not above 0 and below 1, with a CalibrationError; give it back otherwise."""
    if not 0 < alarm_rate < 1:
        msg = f"An alarm rate of {alarm_rate} makes no sense: give a share above 0 and below 1, such as 0.01."
        raise CalibrationError(msg)
    return alarm_rate


def check_scores(scores: ArrayLike) -> NDArray[np.float64]:
    """Sort calibration scores in ascending order.

    Raises:
        CalibrationError: If there are none, or if one is not finite.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not values.size:
        msg = (
            "There are no good images to calibrate on: give a folder of good images that the model was not trained on."
        )
        raise CalibrationError(msg)
    if bad := int((~np.isfinite(values)).sum()):
        msg = f"{bad} of {values.size} calibration scores are not finite: the model is broken, train it again."
        raise CalibrationError(msg)
    return values


def conformal_rank(n: int, alarm_rate: float) -> int:
    """Find which calibration score is the last to pass: the ``ceil((n + 1) * (1 - alarm_rate))``-th smallest.

    Args:
        n: Number of calibration scores, 1 or more.
        alarm_rate: Share of good images that may raise an alarm, above 0 and below 1.

    Returns:
        The rank, from 1 to ``n``; ``n + 1`` if ``n`` is too small for the budget.

    Raises:
        CalibrationError: If the budget is out of range.
    """
    # As the decimal that was written: 0.07 as a binary float lies a little beside it, enough to move a ceiling.
    return math.ceil((n + 1) * (1 - Fraction(str(check_alarm_rate(alarm_rate)))))


def smallest_alarm_rate(n: int) -> float:
    """Give the smallest budget that ``n`` calibration images can promise, ``1 / (n + 1)``."""
    return 1 / (n + 1)


def images_needed(alarm_rate: float) -> int:
    """Give the number of calibration images that a budget takes."""
    return math.ceil(1 / Fraction(str(check_alarm_rate(alarm_rate)))) - 1


def conformal_threshold(scores: ArrayLike, alarm_rate: float) -> float:
    """Find the threshold that a share of at most ``alarm_rate`` of good images reaches, on average over calibrations.

    Args:
        scores: Scores of held-out good images, taken in float32.
        alarm_rate: Share of good images that may raise an alarm.

    Returns:
        The threshold, just above the score of :func:`conformal_rank`; an alarm is a score at or above it.

    Raises:
        CalibrationError: If the scores are empty or not finite, or too few for the budget; the message tells the
            smallest budget that they allow and the number of images that the budget takes.
    """
    values = check_scores(scores)
    rank = conformal_rank(values.size, alarm_rate)
    if rank > values.size:
        msg = (
            f"An alarm rate of {alarm_rate} takes {images_needed(alarm_rate)} good calibration images, but there are "
            f"{values.size}: add images, or allow a rate of {rounded_up(smallest_alarm_rate(values.size))} or more."
        )
        raise CalibrationError(msg)
    return next_above(float(values[rank - 1]))


def next_above(score: float) -> float:
    """Give the smallest float32 above a score; a subnormal one, which OpenVINO may take for 0, is not used."""
    above = np.nextafter(np.float32(score), np.float32(np.inf))
    if abs(above) < np.finfo(np.float32).tiny:
        above = np.finfo(np.float32).tiny if above > 0 else np.float32(0)
    return float(above)


def realised_alarm_rate(n: int, rank: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Give the alarm rate that a calibration may turn out to have.

    Given the calibration images, the share of good images above their ``rank``-th smallest score follows a beta
    distribution with parameters ``n + 1 - rank`` and ``rank`` (Vovk 2012, "Conditional validity of inductive conformal
    predictors"), exactly for continuous scores, and lies below it for others.

    Args:
        n: Number of calibration images.
        rank: Rank of the last score that passes, from 1 to ``n``.
        confidence: Probability that the interval covers, above 0 and below 1.

    Returns:
        Mean, lower and upper end of the central interval.
    """
    from scipy.stats import beta  # takes a second to import, and is needed for calibration only

    distribution = beta(n + 1 - rank, rank)
    low, high = distribution.interval(confidence)
    return float(distribution.mean()), float(low), float(high)


def p_value(score: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Give the conformal p-value: how likely a good image has a score at least as high.

    Args:
        score: Scores to judge, of any shape.
        scores: Scores of held-out good images.

    Returns:
        ``(1 + #{calibration >= score}) / (n + 1)``, of the shape of ``score``, in ``[1 / (n + 1), 1]``. An alarm at
        budget ``a`` is a p-value of ``a`` or less.
    """
    values = check_scores(scores)
    reached = values.size - np.searchsorted(values, np.asarray(score, dtype=np.float64), side="left")
    return (1 + reached) / (values.size + 1)


def suspects(scores: ArrayLike) -> NDArray[np.intp]:
    """Find calibration images that do not look good.

    Returns:
        Positions of scores more than three interquartile ranges above the upper quartile (Tukey 1977, "far out"),
        highest first.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    low, high = np.quantile(check_scores(values), [0.25, 0.75])
    far = np.flatnonzero(values > high + FAR_OUT * (high - low))
    return far[np.argsort(-values[far])]


def rounded_up(rate: float, digits: int = 2) -> str:
    """Write a rate rounded up to some digits behind leading zeros, so that what is written is still reachable."""
    scale = 10 ** (digits - 1 - math.floor(math.log10(rate)))
    return f"{math.ceil(rate * scale - 1e-9) / scale:g}"
