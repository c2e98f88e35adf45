"""A tiny exported model whose answers can be computed by hand."""

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from PIL import Image

from mixedteacher_edge import ModelRecord, Thresholds
from mixedteacher_edge.record import record_path, sha256

OUTPUTS = ("anomaly_map", "pred_score", "pred_label", "pred_mask")


def save_model(path: Path, size=(-1, -1), outputs=OUTPUTS, channels=3, record=True, gain=1.0) -> Path:
    """The map is the mean over channels, weighted 1 : 2 : 3 so that their order counts; the score is its mean."""
    image = ops.parameter([-1, channels, *size], np.float32, name="input")
    weights = ops.constant(np.array([1, 2, 3], np.float32)[None, :channels, None, None] / 6 * gain)
    anomaly_map = ops.reduce_sum(ops.multiply(image, weights), np.array([1]), keep_dims=True)
    score = ops.reduce_mean(anomaly_map, np.array([2, 3]), keep_dims=False)
    half = np.float32(0.5)
    named = {
        "anomaly_map": anomaly_map,
        "pred_score": score,
        "pred_label": ops.greater_equal(score, half),
        "pred_mask": ops.convert(ops.greater_equal(anomaly_map, half), np.uint8),
    }
    results = []
    for name in outputs:
        named[name].output(0).get_tensor().set_names({name})
        results.append(ops.result(named[name]))
    openvino.save_model(openvino.Model(results, [image], "tiny"), path, compress_to_fp16=False)
    if record:
        write_record(path)
    return path


def write_record(path: Path, **values) -> None:
    files = {file.name: sha256(file) for file in (path, path.with_suffix(".bin"))}
    thresholds = Thresholds(0.5, 0.5, 0.2, 1, (0.1, 0.2, 0.3, 0.4))  # 0.21, 0.25, 0.3 and 0.38 on the scale of scores
    known = {"image_size": (48, 40), "files": files, "thresholds": thresholds}
    record_path(path).write_text(ModelRecord("Tiny", "0", "FP32", **known | values).text())


def expected_map(rgb: np.ndarray) -> np.ndarray:
    """The tiny model's map, in float64."""
    scale = {"u1": 255, "u2": 65535}.get(rgb.dtype.str[1:], 1)
    return (rgb.astype(np.float64) / scale) @ np.array([1, 2, 3]) / 6


@pytest.fixture
def model(tmp_path) -> Path:
    return save_model(tmp_path / "model.xml")


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images, one of them below another folder: good, defect, good."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for name, value in (("a.png", 10), ("b.png", 200), ("more/a.png", 20)):
        Image.new("RGB", (40, 48), (value, value, value)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root
