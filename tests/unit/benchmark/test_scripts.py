"""The numbers of the measuring scripts in benchmarks/, which are not part of the package."""

import importlib
from pathlib import Path

import numpy as np
import openvino
import pytest
import yaml
from openvino import opset13

SCRIPTS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def test_multiply_adds_are_counted_by_hand(script):
    image = opset13.parameter([1, 3, 16, 16], np.float32)
    weights = opset13.constant(np.ones((8, 3, 3, 3), np.float32))
    plain = opset13.convolution(image, weights, [2, 2], [1, 1], [1, 1], [1, 1])  # to 8 x 8
    grouped = opset13.constant(np.ones((8, 1, 1, 5, 5), np.float32))
    deep = opset13.group_convolution(plain, grouped, [1, 1], [2, 2], [2, 2], [1, 1])
    flat = opset13.reshape(deep, opset13.constant([1, 512]), special_zero=False)
    linear = opset13.matmul(flat, opset13.constant(np.ones((10, 512), np.float32)), False, True)
    macs = script("common").count_macs(openvino.Model([linear], [image]))
    assert macs == 8 * 64 * 27 + 8 * 64 * 25 + 512 * 10


def test_realised_alarms_are_what_the_theorem_expects(script):
    rng = np.random.default_rng(0)
    rows = script("alarms").compare(rng.normal(size=400), rng.normal(3, 1, 100), (0.2, 0.05, 0.001), 200)
    by_name = {row[0]: row for row in rows}
    assert "conformal, 0.001" not in by_name  # 200 images cannot promise it
    for name, budget in {"conformal, 0.2": 0.2, "conformal, 0.05": 0.05}.items():
        mean, error = map(float, by_name[name][2].split(" ± "))
        assert float(by_name[name][1]) == pytest.approx(budget, abs=0.005)
        assert abs(mean - float(by_name[name][1])) < 4 * error
    assert float(by_name["conformal, 0.2"][4]) > float(by_name["conformal, 0.05"][4]) > 0.8


def test_published_figures_name_models_and_metrics_that_a_benchmark_has(script):
    columns = script("published").COLUMNS
    tables = yaml.safe_load((SCRIPTS / "published.yaml").read_text())["tables"]
    assert tables
    for entry in tables:
        assert {"model", "data", "source", "protocol"} <= entry.keys()
        assert set(entry["figures"]) <= set(columns)
