"""Drift: the test's false reports, its power, and a state that survives."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from mixedteacher_edge import Prediction
from mixedteacher_edge.drift import DriftMonitor, DriftReport, kolmogorov_smirnov
from mixedteacher_edge.errors import CalibrationError, ConfigurationError
from mixedteacher_edge.record import ModelRecord
from mixedteacher_edge.thresholds import Thresholds


def prediction(score: float, label: bool = False) -> Prediction:
    return Prediction(score, label, np.zeros((1, 1), np.float32), np.zeros((1, 1), bool), None)


def passing(rng, count, shift=0.0):
    """Scores as of a calibrated model: the median at 0.25, none above the threshold."""
    scores = 0.25 + shift + 0.08 * rng.normal(size=4 * count)
    return scores[scores <= 0.5][:count]


@pytest.mark.parametrize(("n", "m", "shift"), [(20, 200, 0.0), (100, 200, 0.3), (300, 50, 1.0), (8, 8, 2.0)])
def test_statistic_and_p_value_equal_scipys(n, m, shift):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(shift, size=m)
    statistic, p_value = kolmogorov_smirnov(a, b)
    exact = stats.ks_2samp(a, b, method="exact")
    assert statistic == pytest.approx(exact.statistic, abs=1e-12)
    assert p_value == pytest.approx(exact.pvalue, abs=0.03)


def test_p_value_of_equal_and_of_disjoint_samples():
    assert kolmogorov_smirnov([1, 2, 3], [1, 2, 3]) == (0, 1)
    statistic, p_value = kolmogorov_smirnov(np.arange(50), np.arange(50) + 100)
    assert statistic == 1
    assert 0 <= p_value < 1e-6


@pytest.mark.parametrize(("calibration", "rate"), [(20, 0.05), (100, 0.05), (100, 0.01)])
def test_false_reports_stay_within_the_stated_rate(calibration, rate):
    """Over calibrations: within four standard errors, and not wildly below."""
    rng, windows = np.random.default_rng(0), 3000
    reports = 0
    for _ in range(windows):
        monitor = DriftMonitor(passing(rng, calibration), window=50, false_report_rate=rate)
        for score in passing(rng, 50):
            report = monitor.add(prediction(score))
        assert report is not None
        reports += report.drifted
    error = (rate * (1 - rate) / windows) ** 0.5
    assert rate / 4 < reports / windows < rate + 4 * error


@pytest.mark.parametrize(("shift", "higher"), [(0.08, True), (-0.08, False)])
def test_a_shift_of_one_deviation_is_seen(shift, higher):
    rng = np.random.default_rng(1)
    monitor = DriftMonitor(passing(rng, 100), window=200, false_report_rate=0.001)
    for score in passing(rng, 200, shift):
        report = monitor.add(prediction(score))
    assert report.drifted
    assert report.higher is higher
    assert 0.2 < report.strength <= 1
    assert "no longer look like the calibration images" in report.text()


def test_alarms_are_left_out_and_windows_do_not_overlap():
    rng = np.random.default_rng(2)
    monitor = DriftMonitor(passing(rng, 30), window=10)
    reports = []
    for score in passing(rng, 25):
        reports += [monitor.add(prediction(0.9, label=True)), monitor.add(prediction(score))]
    found = [report for report in reports if report is not None]
    assert [report.images for report in found] == [10, 10]
    assert len(monitor.scores) == 5


class TestState:
    def test_a_window_goes_on_after_a_restart(self, tmp_path):
        rng = np.random.default_rng(3)
        calibration, scores = passing(rng, 50), passing(rng, 30, 0.05)
        whole = DriftMonitor(calibration, window=30)
        expected = [whole.add(prediction(score)) for score in scores][-1]
        for score in scores:  # a restart before every image
            report = DriftMonitor(calibration, tmp_path / "drift.json", window=30).add(prediction(score))
        assert isinstance(report, DriftReport)
        assert report == expected

    def test_a_kill_leaves_a_state_that_can_be_read(self, tmp_path):
        """The process dies in the middle of writing, as often as the test has images."""
        state = tmp_path / "drift.json"
        code = f"""
import os, sys
from pathlib import Path
import numpy as np
from mixedteacher_edge import Prediction
from mixedteacher_edge.drift import DriftMonitor
monitor = DriftMonitor(np.linspace(0, 0.4, 20), Path({str(state)!r}), window=50)
def add(score):
    monitor.add(Prediction(score, False, np.zeros((1, 1), np.float32), np.zeros((1, 1), bool), None))
add(0.1)
write = Path.write_text
def half(self, text):
    write(self, text[: len(text) // 2])
    os._exit(9)
Path.write_text = half
add(0.2)
"""
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
        assert json.loads(state.read_text())["scores"] == [0.1]
        assert DriftMonitor(np.linspace(0, 0.4, 20), state, window=50).scores == [0.1]

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "model": "", "scores": ["x"]}'])
    def test_a_damaged_state_starts_a_new_window(self, tmp_path, caplog, content):
        state = tmp_path / "drift.json"
        state.write_text(content)
        with caplog.at_level(logging.WARNING):
            assert DriftMonitor(np.linspace(0, 0.4, 20), state).scores == []
        assert "cannot be read: a new window starts" in caplog.text

    def test_another_models_state_is_not_continued(self, tmp_path, caplog):
        state = tmp_path / "drift.json"
        DriftMonitor(np.linspace(0, 0.4, 20), state, model="a").add(prediction(0.1))
        with caplog.at_level(logging.WARNING):
            assert DriftMonitor(np.linspace(0, 0.4, 20), state, model="b").scores == []
        assert "belongs to another model" in caplog.text

    def test_an_unwritable_state_is_told_once_and_the_watch_goes_on(self, tmp_path, caplog):
        monitor = DriftMonitor(np.linspace(0, 0.4, 20), tmp_path / "none" / "drift.json", window=8)
        with caplog.at_level(logging.WARNING):
            reports = [monitor.add(prediction(0.1)) for _ in range(8)]
        assert caplog.text.count("cannot be written") == 1
        assert isinstance(reports[-1], DriftReport)


def test_wrong_arguments():
    with pytest.raises(CalibrationError, match="3 passing calibration images are too few to see a change"):
        DriftMonitor([0.1, 0.2, 0.3, 0.9])
    for arguments in ({"window": 3}, {"false_report_rate": 0}):
        with pytest.raises(ConfigurationError, match="give a window of 8 images or more, and a rate above 0"):
            DriftMonitor(np.linspace(0, 0.4, 20), **arguments)
    with pytest.raises(CalibrationError, match="was not calibrated on good images: run 'mixedteacher calibrate"):
        DriftMonitor.of(ModelRecord("MixedTeacher", "0", "FP32"))
    record = ModelRecord(
        "MixedTeacher", "0", "FP32", thresholds=Thresholds(0.5, 0.5, 0.1, 4, tuple(np.linspace(0, 0.4, 20)))
    )
    assert DriftMonitor.of(record, window=9).scores == []
