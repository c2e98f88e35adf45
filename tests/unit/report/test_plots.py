"""Mean curves, histograms and paths, by hand."""

import re
from itertools import pairwise

import numpy as np
import pytest

from anomalib_mixedteacher.report.curves import mean_curve
from anomalib_mixedteacher.report.plots import histogram, scatter
from anomalib_mixedteacher.report.style import styles
from anomalib_mixedteacher.report.svg import Plane, ticks


def test_a_mean_of_steps_has_steps():
    early = [(0.0, 0.0), (0.0, 0.6), (1.0, 0.6), (1.0, 1.0)]
    late = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (1.0, 1.0)]
    expected = [(0.0, 0.0), (0.0, 0.3), (0.5, 0.3), (0.5, 0.8), (1.0, 0.8), (1.0, 1.0)]
    assert [pytest.approx(point) for point in expected] == mean_curve([early, late])


def test_a_mean_ends_where_its_first_curve_ends():
    assert mean_curve([[(0.0, 0.0), (0.3, 0.6)], [(0.0, 0.2), (0.2, 0.6), (0.4, 1.0)]])[-1][0] == 0.3
    slopes = dict(mean_curve([[(0.0, 0.0), (0.3, 0.6)], [(0.0, 0.2), (0.2, 0.6), (0.4, 1.0)]]))
    assert slopes[0.2] == pytest.approx((0.4 + 0.6) / 2)


def test_one_curve_stays_as_it_is():
    points = [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)]
    assert mean_curve([points]) == points


def test_a_path_drops_only_what_lies_on_its_line():
    plane = Plane((0, 1), (0, 1), 46 + 12 + 100, 12 + 40 + 100)  # margins, and a hundred units each way
    points = [(0, 0), (0, 0.2), (0, 0.5), (0.3, 0.5), (0.6, 0.5), (1, 1)]
    assert plane.path(points) == "M46,112 46,62 106,62 146,12"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 0.3, ["0.0", "0.1", "0.2", "0.3"]),
        (0.93, 0.99, ["0.94", "0.96", "0.98"]),
        (0, 22, ["0", "5", "10", "15", "20"]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert [text for _, text in ticks(low, high)] == expected


def test_a_histogram_counts_what_is_above_its_threshold():
    drawn = histogram("A", np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.4, 9.0]), 0.3)
    assert drawn.text == "Above the threshold: 0 of 3 good, 2 of 3 defective."
    assert "≥ 0.900" in drawn.plot  # four times the threshold's distance from the lowest score
    assert 'class="threshold"' in drawn.plot


@pytest.mark.parametrize(
    ("good", "bad", "threshold"),
    [([0.5], [], None), ([], [0.5, 0.5], None), ([0.2, 0.2], [0.2], 0.2), ([0.0], [0.0], 0.0), ([1.0, 2.0], [], 0.5)],
)
def test_degenerate_histograms_are_drawn(good, bad, threshold):
    plot = histogram("A", np.array(good), np.array(bad), threshold).plot
    assert "nan" not in plot
    assert ('class="threshold"' in plot) == (threshold is not None)
    numbers = [float(n) for path in re.findall(r' d="([^"]+)"', plot) for n in re.findall(r"-?\d+\.?\d*", path)]
    assert all(-1 <= number <= 301 for number in numbers)


def test_many_models_are_told_apart_without_colour():
    names = [str(index) for index in range(20)]
    drawn = styles(names)
    assert len({(style.colour, style.dash, style.corners) for style in drawn.values()}) == 20
    neighbours = pairwise(names)
    assert all(drawn[a].dash != drawn[b].dash and drawn[a].corners != drawn[b].corners for a, b in neighbours)
    plot = scatter(dict.fromkeys(names[:3], (1.0, 0.9)), drawn, "AUROC")
    heights = [float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', plot)]
    assert all(b - a >= 14 for a, b in pairwise(sorted(heights)))
