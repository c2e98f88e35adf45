"""Mean curves by hand; what is drawn, as the SVG has it."""

import base64
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from anomalib_mixedteacher.report.plots import curves, histogram, mean_curve, scatter, styles, swatch


def drawn(uri: str) -> list[dict[str, str]]:
    """Read the paths of an image, and check that it is a whole SVG that refers to nothing outside."""
    kind, content = uri.split(",")
    assert kind == "data:image/svg+xml;base64"
    root = ElementTree.fromstring(base64.b64decode(content))
    links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    paths = [element.attrib for element in root.iter("{http://www.w3.org/2000/svg}path")]
    assert not any("nan" in path.get("d", "") for path in paths)
    return paths


def test_a_mean_of_steps_has_steps():
    early = [(0.0, 0.0), (0.0, 0.6), (1.0, 0.6), (1.0, 1.0)]
    late = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (1.0, 1.0)]
    x, y = mean_curve([early, late])
    for place, expected in ((0.001, 0.3), (0.499, 0.3), (0.501, 0.8), (0.999, 0.8), (1.0, 1.0)):
        assert np.interp(place, x, y) == pytest.approx(expected, abs=1e-4)
    assert (x[0], y[0]) == (0, 0)


def test_a_mean_ends_where_its_first_curve_ends():
    x, y = mean_curve([[(0.0, 0.0), (0.3, 0.6)], [(0.0, 0.2), (0.2, 0.6), (0.4, 1.0)]])
    assert x[-1] == 0.3
    assert np.interp(0.2, x, y) == pytest.approx((0.4 + 0.6) / 2)


@pytest.mark.parametrize(
    ("good", "bad", "threshold"),
    [([0.5], [], None), ([], [0.5, 0.5], None), ([0.2, 0.2], [0.2], 0.2), ([0.0], [0.0], 0.0), ([1.0, 2.0], [], 0.5)],
)
def test_degenerate_histograms_are_drawn(good, bad, threshold):
    dashed = [
        path
        for path in drawn(histogram(np.array(good), np.array(bad), threshold))
        if "dasharray" in path.get("style", "")
    ]
    assert len(dashed) == (threshold is not None)


def test_degenerate_curves_and_points_are_drawn():
    looks = styles(["A", "B"])
    assert drawn(curves({"A": [[(0.0, 0.0)]], "B": [[(0.0, 0.0), (0.0, 1.0)]]}, looks, "x", "y"))
    assert drawn(scatter({"A": (0.0, 1.0), "B": (0.0, 1.0)}, looks, "AUROC"))


def test_many_models_are_told_apart_without_colour():
    names = [str(index) for index in range(20)]
    looks = styles(names)
    assert len({(style.color, style.linestyle) for style in looks.values()}) == 20
    for a, b in pairwise(names):
        assert looks[a].linestyle != looks[b].linestyle
        assert looks[a].marker != looks[b].marker
    assert len({str(drawn(swatch(style))) for style in looks.values()}) == 20
