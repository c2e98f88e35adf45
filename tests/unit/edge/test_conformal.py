"""Conformal thresholds and p-values: ranks counted by hand, guarantees by simulation, bad input refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import beta, binom

from mixedteacher_edge.conformal import (
    conformal_rank,
    conformal_threshold,
    images_needed,
    next_above,
    p_value,
    realised_alarm_rate,
    rounded_up,
    smallest_alarm_rate,
    suspects,
)
from mixedteacher_edge.errors import CalibrationError

RANKS = [
    (1, 0.5, 1),
    (1, 0.49, 2),  # too few
    (2, 0.34, 2),
    (2, 0.33, 3),
    (19, 0.05, 19),
    (19, 0.049, 20),
    (20, 0.1, 19),
    (99, 0.01, 99),
    (99, 0.009, 100),
    (99, 0.07, 93),
    (100, 0.2, 81),
]


@pytest.mark.parametrize(("n", "alarm_rate", "rank"), RANKS)
def test_rank(n, alarm_rate, rank):
    assert conformal_rank(n, alarm_rate) == rank
    if rank <= n:
        assert conformal_threshold(np.arange(1, n + 1), alarm_rate) == np.nextafter(np.float32(rank), np.float32(999))
    else:
        with pytest.raises(CalibrationError, match=f"takes {images_needed(alarm_rate)} good .* there are {n}: add"):
            conformal_threshold(np.arange(1, n + 1), alarm_rate)


def test_rank_is_the_smallest_that_keeps_the_budget():
    """At most (n + 1) * a of the n + 1 places a new score can take may lie above the threshold."""
    for n in (1, 2, 3, 19, 20, 57, 99, 100):
        for percent in range(1, 100):
            rank, budget = conformal_rank(n, percent / 100), (n + 1) * Fraction(percent, 100)
            assert n + 1 - rank <= budget < n + 2 - rank


@pytest.mark.parametrize("alarm_rate", [0.5, 0.1, 0.05, 0.02, 0.01, 0.003, 0.07])
def test_images_needed_is_where_the_budget_becomes_reachable(alarm_rate):
    n = images_needed(alarm_rate)
    assert conformal_rank(n, alarm_rate) <= n
    assert conformal_rank(n - 1, alarm_rate) > n - 1


def test_ties_and_constant_scores_raise_no_alarm():
    scores = np.full(50, 0.7, np.float32)
    assert not (scores >= conformal_threshold(scores, 0.02)).any()
    assert p_value(scores[0], scores) == 1
    assert p_value(0.70001, scores) == pytest.approx(1 / 51)
    assert not suspects(scores).size


@pytest.mark.parametrize("score", [0.0, -0.0, 1.0, -2.5, 1e-38, -1e-38, 3e-45, 1e30])
def test_next_above_is_a_normal_float32_just_above(score):
    above = np.float32(next_above(score))
    assert above > np.float32(score) or (abs(score) < 1e-37 and above == 0)
    assert above == 0 or abs(above) >= np.finfo(np.float32).tiny
    if abs(score) > 1e-37:
        assert np.nextafter(above, np.float32(-np.inf)) == np.float32(score)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    for call in (lambda s: conformal_threshold(s, 0.5), lambda s: p_value(0.1, s), suspects):
        with pytest.raises(CalibrationError, match="1 of 3 calibration scores are not finite"):
            call([0.1, bad, 0.2])
        with pytest.raises(CalibrationError, match="no good images to calibrate on: give a folder"):
            call([])


@pytest.mark.parametrize("alarm_rate", [0, 1, -0.1, 1.5, math.nan])
def test_budgets_that_are_no_share_are_refused(alarm_rate):
    with pytest.raises(CalibrationError, match="makes no sense: give a share above 0 and below 1"):
        conformal_threshold([1, 2, 3], alarm_rate)


@pytest.mark.parametrize("n", [19, 99])
@pytest.mark.parametrize("alarm_rate", [0.05, 0.2])
def test_realised_rate_averages_at_the_budget_or_below(n, alarm_rate):
    """The mean share over calibrations is known exactly: 1 - rank / (n + 1)."""
    calibration = np.random.default_rng(0).exponential(size=(4000, n))
    thresholds = np.array([conformal_threshold(scores, alarm_rate) for scores in calibration])
    realised = np.exp(-thresholds)  # the exact share above, for this distribution
    expected = 1 - conformal_rank(n, alarm_rate) / (n + 1)
    assert expected <= alarm_rate + 1e-12
    assert realised.mean() == pytest.approx(expected, abs=4 * realised.std() / math.sqrt(4000))


def test_p_value_counts():
    scores = np.array([0.1, 0.2, 0.2, 0.4])
    for score in (0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5):
        assert p_value(score, scores) == (1 + sum(s >= score for s in scores)) / 5


def test_alarm_and_p_value_agree_ties_included():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=99).astype(np.float32)
    new = np.concatenate([rng.normal(size=1000).astype(np.float32), scores, np.nextafter(scores, np.float32(99))])
    for alarm_rate in (0.01, 0.05, 0.3):
        assert ((new >= conformal_threshold(scores, alarm_rate)) == (p_value(new, scores) <= alarm_rate + 1e-12)).all()


def test_suspects_are_found_highest_first():
    scores = np.random.default_rng(0).normal(1.0, 0.1, size=60)
    assert not suspects(scores).size
    scores[7], scores[40] = 5.0, 9.0
    assert suspects(scores).tolist() == [40, 7]


@pytest.mark.parametrize("digits", [2, 3])
def test_a_rate_that_is_written_can_be_reached(digits):
    for n in range(1, 1200):
        written = float(rounded_up(smallest_alarm_rate(n), digits))
        assert conformal_rank(n, written) <= n
        assert written == pytest.approx(smallest_alarm_rate(n), rel=10 ** (1 - digits))


@pytest.mark.parametrize(("n", "alarm_rate"), [(19, 0.05), (99, 0.02), (200, 0.2)])
def test_realised_rate_against_simulation(n, alarm_rate):
    rng = np.random.default_rng(0)
    rank = conformal_rank(n, alarm_rate)
    mean, low, high = realised_alarm_rate(n, rank, 0.9)
    realised = 1 - np.sort(rng.uniform(size=(4000, n)), axis=1)[:, rank - 1]
    assert realised.mean() == pytest.approx(mean, rel=0.1)
    inside = ((realised >= low) & (realised <= high)).mean()
    assert binom.ppf(1e-4, 4000, 0.9) / 4000 < inside < binom.ppf(1 - 1e-4, 4000, 0.9) / 4000
    assert beta.cdf(low, n + 1 - rank, rank) == pytest.approx(0.05)
