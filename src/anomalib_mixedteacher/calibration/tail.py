"""Estimates beyond counting: the tail of the scores, and how far a realised alarm rate may lie from its budget."""

import numpy as np
from numpy.typing import ArrayLike

from anomalib_mixedteacher.calibration.conformal import check_alarm_rate, check_scores
from anomalib_mixedteacher.errors import CalibrationError

TAIL_SHARE = 0.25
LEAST_TAIL = 8


def tail_threshold(scores: ArrayLike, alarm_rate: float) -> float:
    """Estimate a threshold for a budget that counting cannot reach.

    A generalised Pareto distribution without an upper end (shape 0 or more) is fitted to the exceedances over the upper
    quartile (Pickands 1975; Coles 2001, ch. 4). It extrapolates: unlike the conformal threshold it promises nothing.

    Args:
        scores: Scores of held-out good images, 32 or more.
        alarm_rate: Share of good images that may raise an alarm, below a quarter.

    Returns:
        The estimated threshold, the largest score or more.

    Raises:
        CalibrationError: If there are too few scores, or the budget is a quarter or more.
    """
    values = check_scores(scores)
    if check_alarm_rate(alarm_rate) >= TAIL_SHARE:
        msg = f"The tail fit is for alarm rates below {TAIL_SHARE}, not {alarm_rate}: leave it out."
        raise CalibrationError(msg)
    start = float(np.quantile(values, 1 - TAIL_SHARE))
    excess = values[values > start] - start
    if excess.size < LEAST_TAIL:
        msg = (
            f"The tail fit takes {int(LEAST_TAIL / TAIL_SHARE)} good calibration images of different scores, but there "
            f"are {values.size} with {excess.size} scores in the tail: add images."
        )
        raise CalibrationError(msg)
    from scipy.stats import genpareto  # takes a second to import, and is needed for calibration only

    unit = float(excess.mean())  # the fit's tolerances are absolute, and a product of distances may be 1e-10
    shape, _, scale = genpareto.fit(excess / unit, floc=0)
    if shape < 0:
        # A dozen exceedances say nothing about an end of the tail, yet the likelihood loves one just above the largest.
        shape, scale = 0.0, 1.0
    share = excess.size / values.size
    return max(float(values[-1]), start + float(genpareto.isf(alarm_rate / share, shape, scale=scale * unit)))


def realised_alarm_rate(n: int, rank: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Give the alarm rate that a calibration may turn out to have.

    Given the calibration images, the share of good images above their ``rank``-th smallest score follows a beta
    distribution with parameters ``n + 1 - rank`` and ``rank`` (Vovk 2012, "Conditional validity of inductive conformal
    predictors"), exactly for continuous scores, and lies below it for others.

    Args:
        n: Number of calibration images.
        rank: Rank of the threshold, from 1 to ``n``.
        confidence: Probability that the interval covers, above 0 and below 1.

    Returns:
        Mean, lower and upper end of the central interval.
    """
    from scipy.stats import beta  # takes a second to import, and is needed for calibration only

    distribution = beta(n + 1 - rank, rank)
    low, high = distribution.interval(confidence)
    return float(distribution.mean()), float(low), float(high)
