"""Calibrating an exported model: a tiny graph whose scores can be computed by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import InferenceBatch
from openvino import opset13 as ops
from PIL import Image

from anomalib_mixedteacher.calibration.exported import calibrate_export
from anomalib_mixedteacher.calibration.post_processor import NormalCalibratedPostProcessor
from anomalib_mixedteacher.calibration.thresholds import Threshold
from anomalib_mixedteacher.cli import main
from anomalib_mixedteacher.edge import EdgeDetector, ModelRecord
from anomalib_mixedteacher.edge.record import read_record
from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError, DataError
from anomalib_mixedteacher.export.files import write_model
from anomalib_mixedteacher.export.verdict import RAW_MAP, RAW_SCORE, raw, with_thresholds

GREYS = [40, 10, 30, 20]
OUTPUTS = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


def network() -> openvino.Model:
    """The map is the mean over the channels, the score is the map's maximum."""
    image = ops.parameter([-1, 3, -1, -1], np.float32, name="input")
    anomaly_map = ops.reduce_mean(image, np.array([1]), keep_dims=True)
    score = ops.reduce_max(anomaly_map, np.array([1, 2, 3]), keep_dims=False)
    for node, name, friendly in ((score, "pred_score", RAW_SCORE), (anomaly_map, "anomaly_map", RAW_MAP)):
        node.output(0).set_names({name})
        node.set_friendly_name(friendly)
    return openvino.Model([ops.result(score), ops.result(anomaly_map)], [image], "tiny")


def thresholds(**values: float) -> dict[str, Threshold]:
    scores = np.array([0.1, 0.2, 0.3], np.float32)
    return {kind: Threshold(value, scores) for kind, value in values.items()}


@pytest.fixture
def exported(tmp_path) -> Path:
    graph = with_thresholds(network(), thresholds(image=0.9, pixel=0.8))
    return write_model(graph, ModelRecord("Tiny", "0", "FP32"), tmp_path / "model.xml")


@pytest.fixture
def good(tmp_path) -> Path:
    """Noise up to a grey, which is the image's score; a spot of that grey, larger than any other structure."""
    rng = np.random.default_rng(0)
    (tmp_path / "good").mkdir()
    for index, grey in enumerate(GREYS):
        values = rng.integers(0, grey, (40, 48), np.uint8)
        values[3:8, 10:16] = grey
        Image.fromarray(values).convert("RGB").save(tmp_path / "good" / f"{index}.png")
    return tmp_path / "good"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("scores", [torch.arange(1.0, 20.0) / 7, torch.full((19,), -2.1), torch.zeros(19)])
def test_the_graph_judges_as_the_post_processor_does(tmp_path, scores, half):
    processor = NormalCalibratedPostProcessor(alarm_rate=0.1)
    processor.gather(scores, (scores / 3)[:, None, None].expand(-1, 8, 8))
    processor.calibrate()
    graph = with_thresholds(network(), processor.thresholds)
    path = write_model(graph, ModelRecord("Tiny", "0", "FP32"), tmp_path / "model.xml", compress_to_fp16=half)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [output.get_any_name() for output in compiled.outputs] == OUTPUTS
    images = 12 * torch.randn(64, 1, 8, 8).expand(-1, 3, -1, -1)
    images[0] = processor.image_threshold  # an alarm is above the threshold, not at it
    images[1] = processor.pixel_threshold
    maps = images.mean(dim=1, keepdim=True)
    expected = processor(InferenceBatch(pred_score=maps.amax(dim=(1, 2, 3)), anomaly_map=maps))
    found = compiled(images.numpy())
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], getattr(expected, name).numpy(), rtol=0, atol=1e-6, err_msg=name)
    assert found["pred_score"][0] == 0.5


def test_a_verdict_can_be_taken_off_and_put_on_again(exported):
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    core = openvino.Core()
    once = raw(core.read_model(exported))
    result = core.compile_model(once, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)
    np.testing.assert_allclose(result["anomaly_map"], images.mean(axis=1, keepdims=True), atol=1e-6)
    again = raw(with_thresholds(once, thresholds(image=0.5, pixel=0.4)))
    assert [output.get_any_name() for output in again.outputs] == ["pred_score", "anomaly_map"]


def test_thresholds_scores_and_record(exported, good, tmp_path, capsys):
    arguments = ["--good", str(good), "--alarm-rate=0.4", "--min-area=16"]
    assert main(["calibrate", str(exported), *arguments]) == 0
    assert "4 good images, budget 0.4" in capsys.readouterr().out
    output = tmp_path / "model-calibrated.xml"
    record = read_record(output)
    assert record.thresholds == pytest.approx({"image": 30 / 255, "pixel": 30 / 255})  # the third of four
    # the median, the lower of the two in the middle, is at 0.25, the threshold at 0.5
    assert record.calibration.scores == pytest.approx([1 / 6, 0.25, 0.5, 0.75])
    assert (record.calibration.alarm_rate, record.calibration.min_area) == (0.4, 16)
    assert json.loads((tmp_path / "model-calibrated-calibration.json").read_text())["images"] == 4
    detector = EdgeDetector(output, cache=None)
    assert detector.predict(good / "0.png").score == pytest.approx(0.75, abs=1e-5)
    assert detector.predict(good / "0.png").label
    assert read_record(exported).calibration is None


def test_a_region_counts_from_its_area_on(exported, good, tmp_path):
    one, many = (
        calibrate_export(exported, good, tmp_path / "new.xml", 0.2, min_area=area).pixel_threshold for area in (30, 31)
    )
    assert one == pytest.approx(40 / 255)
    assert many < one  # the spot has 5 x 6 pixels


def test_deep_images_score_as_their_eight_bit_copies(exported, good, tmp_path):
    usual = calibrate_export(exported, good, tmp_path / "usual.xml", 0.2)
    for path in good.iterdir():
        grey = np.asarray(Image.open(path))[..., 0]
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    deep = calibrate_export(exported, good, tmp_path / "deep.xml", 0.2)
    assert deep.scores == pytest.approx(usual.scores)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alarm_rate": 0.05}, CalibrationError, "takes 19 good calibration images, but there are 4"),
        ({"alarm_rate": 1.5}, CalibrationError, "give a share above 0 and below 1"),
        ({"alarm_rate": 0.2, "min_area": 0}, ConfigurationError, "min_area must be 1 pixel or more"),
        ({"alarm_rate": 0.2, "min_area": 5000}, ConfigurationError, "the anomaly map has 40 x 48: give a smaller one"),
        ({"alarm_rate": 0.2, "good": Path("nowhere")}, DataError, "There is no file or folder nowhere"),
    ],
)
def test_nothing_is_written_after_a_mistake(exported, good, tmp_path, settings, error, message):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        calibrate_export(**{"model": exported, "good": good, "output": tmp_path / "new.xml", **settings})
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_packages_are_named(exported, good, monkeypatch, capsys):
    for module in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert main(["calibrate", str(exported), "--good", str(good), "--alarm-rate=0.4"]) == 1
    assert "pip install 'anomalib-mixedteacher-edge[calibrate]'" in capsys.readouterr().err
