"""Tail fit and the spread of the realised alarm rate, against known distributions."""

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from anomalib_mixedteacher.calibration.conformal import conformal_rank, conformal_threshold
from anomalib_mixedteacher.calibration.tail import realised_alarm_rate, tail_threshold
from anomalib_mixedteacher.errors import CalibrationError


def test_tail_of_an_exponential_is_found():
    """Exceedances of an exponential are exponential: a generalised Pareto of shape 0, so the fit is unbiased there."""
    rng = np.random.default_rng(0)
    estimates = [tail_threshold(rng.exponential(size=400), 0.001) for _ in range(40)]
    assert np.median(estimates) == pytest.approx(-np.log(0.001), rel=0.1)


def test_tail_goes_beyond_the_largest_score_where_counting_cannot():
    scores = np.random.default_rng(1).exponential(size=60)
    with pytest.raises(CalibrationError, match="ask for the tail fit"):
        conformal_threshold(scores, 0.001)
    assert tail_threshold(scores, 0.001) > scores.max()
    assert tail_threshold(scores, 0.001) > tail_threshold(scores, 0.01)


@pytest.mark.parametrize("n", [40, 60])
@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform"])
def test_tail_is_never_laxer_than_the_largest_score_and_nearer_to_the_budget(n, draw):
    rng = np.random.default_rng(0)
    tails = {"normal": norm.sf, "exponential": lambda t: np.exp(-t), "uniform": lambda t: np.clip(1 - t, 0, 1)}
    samples = [getattr(rng, draw)(size=n) for _ in range(60)]
    thresholds = np.array([tail_threshold(scores, 0.005) for scores in samples])
    largest = np.array([scores.max() for scores in samples])
    assert (thresholds >= largest).all()
    realised, fallback = tails[draw](thresholds).mean(), tails[draw](largest).mean()
    assert realised < 0.7 * fallback


def test_tail_agrees_with_counting_where_both_go():
    scores = np.random.default_rng(2).exponential(size=2000)
    big = 0.002  # the estimate is never below the largest score, so only budgets beyond counting can be compared
    assert tail_threshold(scores[:200], big) == pytest.approx(conformal_threshold(scores, big), rel=0.35)


def test_tail_does_not_depend_on_the_unit():
    """A product of distances may be of any size."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        scores = rng.gamma(3, size=60)
        assert tail_threshold(1e-12 * scores, 1e-3) == pytest.approx(1e-12 * tail_threshold(scores, 1e-3), rel=0.01)


@pytest.mark.parametrize("scores", [np.arange(20.0), np.full(100, 3.0)])
def test_too_few_scores_in_the_tail(scores):
    with pytest.raises(CalibrationError, match="takes 32 good calibration images of different scores"):
        tail_threshold(scores, 0.01)


def test_tail_is_no_middle():
    with pytest.raises(CalibrationError, match="below 0.25, not 0.3: leave it out"):
        tail_threshold(np.arange(100.0), 0.3)


@pytest.mark.parametrize(("n", "alarm_rate"), [(19, 0.05), (99, 0.02), (200, 0.2)])
def test_realised_rate_against_simulation(n, alarm_rate):
    rng = np.random.default_rng(0)
    rank = conformal_rank(n, alarm_rate)
    mean, low, high = realised_alarm_rate(n, rank, 0.9)
    realised = 1 - np.sort(rng.uniform(size=(4000, n)), axis=1)[:, rank - 1]
    assert realised.mean() == pytest.approx(mean, rel=0.1)
    inside = ((realised >= low) & (realised <= high)).mean()
    assert binom.ppf(1e-4, 4000, 0.9) / 4000 < inside < binom.ppf(1 - 1e-4, 4000, 0.9) / 4000


def test_interval_holds_its_probability_in_equal_tails():
    _, low, high = realised_alarm_rate(99, 98, 0.8)
    assert beta.cdf(low, 2, 98) == pytest.approx(0.1)
    assert beta.sf(high, 2, 98) == pytest.approx(0.1)
