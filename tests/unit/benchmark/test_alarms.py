"""The check of false-alarm budgets, on scores whose answers are known."""

import numpy as np
import pytest
from anomalib_mixedteacher.benchmark.alarms import compare, plot, table


@pytest.fixture(scope="module")
def outcomes():
    rng = np.random.default_rng(0)
    scores = {"good": rng.exponential(size=398), "hole": np.full(10, 100.0), "stain": np.full(6, -1.0)}
    return {outcome.name: outcome for outcome in compare(scores, (0.2, 0.05), splits=300)}


def test_realised_rates_are_the_expected_ones(outcomes):
    """199 calibration images: ceil(200 * 0.8) = 160 and ceil(200 * 0.95) = 190 of 200 places."""
    for name, expected in (
        ("conformal, 0.2", 0.2),
        ("conformal, 0.05", 0.05),
        ("maximum of the calibration scores", 1 / 200),
    ):
        outcome = outcomes[name]
        assert outcome.promised == pytest.approx(expected)
        assert outcome.rates.shape == (300,)
        # the splits share one pool, within which the expectation holds exactly
        assert outcome.rates.mean() == pytest.approx(expected, abs=4 * outcome.standard_error)
        assert outcome.standard_error < 0.003


def test_recall_is_by_kind(outcomes):
    assert outcomes["conformal, 0.05"].recall == {"hole": 1.0, "stain": 0.0}


def test_f1_adaptive_separates_what_can_be_separated():
    scores = {"good": np.linspace(0, 1, 40), "hole": np.linspace(2, 3, 10)}
    (*_, adaptive) = compare(scores, (0.2,), splits=5)
    assert adaptive.promised is None
    assert adaptive.rates.max() == 0
    assert adaptive.recall["hole"] > 0.7


def test_table_and_plot(outcomes, tmp_path):
    lines = table(list(outcomes.values())).splitlines()
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
    plot(list(outcomes.values()), tmp_path / "alarms.png", "test")
    assert (tmp_path / "alarms.png").read_bytes().startswith(b"\x89PNG")
