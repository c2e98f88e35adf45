"""Calibrating an exported model: a tiny graph whose scores can be computed by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import InferenceBatch
from openvino import opset13 as ops
from PIL import Image

from anomalib_mixedteacher.post_processing import NormalCalibratedPostProcessor
from mixedteacher_edge import EdgeDetector, ModelRecord
from mixedteacher_edge.__main__ import main
from mixedteacher_edge.calibrate import calibrate_export, set_thresholds
from mixedteacher_edge.errors import CalibrationError, ConfigurationError, DataError
from mixedteacher_edge.graph import RAW_MAP, RAW_SCORE, raw, with_thresholds, write_model
from mixedteacher_edge.record import read_record
from mixedteacher_edge.thresholds import Thresholds

GREYS = [40, 10, 30, 20]
OUTPUTS = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


def network() -> openvino.Model:
    """The map is the maximum over the channels, the score is the map's maximum."""
    image = ops.parameter([-1, 3, -1, -1], np.float32, name="input")
    anomaly_map = ops.reduce_max(image, np.array([1]), keep_dims=True)
    score = ops.reduce_max(anomaly_map, np.array([1, 2, 3]), keep_dims=False)
    for node, name, friendly in ((score, "pred_score", RAW_SCORE), (anomaly_map, "anomaly_map", RAW_MAP)):
        node.output(0).set_names({name})
        node.set_friendly_name(friendly)
    return openvino.Model([ops.result(score), ops.result(anomaly_map)], [image], "tiny")


@pytest.fixture
def exported(tmp_path) -> Path:
    thresholds = Thresholds(0.9, 0.8)
    record = ModelRecord("Tiny", "0", "FP32", thresholds=thresholds)
    return write_model(with_thresholds(network(), thresholds), record, tmp_path / "model.xml")


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
    for index, value in enumerate((processor.image_threshold, processor.pixel_threshold)):
        images[2 * index] = value  # an alarm begins at the threshold
        images[2 * index + 1] = float(np.nextafter(np.float32(value), np.float32(-np.inf)))
    maps = images.amax(dim=1, keepdim=True)
    expected = processor(InferenceBatch(pred_score=maps.amax(dim=(1, 2, 3)), anomaly_map=maps))
    found = compiled(images.numpy())
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], getattr(expected, name).numpy(), rtol=0, atol=1e-6, err_msg=name)
    assert found["pred_score"][0] == 0.5 > found["pred_score"][1]
    assert found["pred_label"][:2].tolist() == [True, False]
    assert found["pred_mask"][2].all()
    assert not found["pred_mask"][3].any()


def test_a_verdict_can_be_taken_off_and_put_on_again(exported):
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    core = openvino.Core()
    once = raw(core.read_model(exported))
    result = core.compile_model(once, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)
    np.testing.assert_allclose(result["anomaly_map"], images.max(axis=1, keepdims=True), atol=1e-6)
    again = raw(with_thresholds(once, Thresholds(0.5, 0.4)))
    assert [output.get_any_name() for output in again.outputs] == ["pred_score", "anomaly_map"]


def test_thresholds_scores_and_record(exported, good, tmp_path, capsys):
    assert main(["calibrate", str(exported), "--good", str(good), "--alarm-rate=0.4", "--min-area=16"]) == 0
    printed = capsys.readouterr().out
    assert "4 good images, budget 0.4" in printed
    assert "expected false alarms in 1000 good images: 400.0" in printed  # 2 of 5 places
    assert printed.count("<- threshold") == 1
    output = tmp_path / "model-calibrated.xml"
    thresholds = read_record(output).thresholds
    above = np.nextafter(np.float32(30 / 255), np.float32(1))  # the third of four
    assert (thresholds.image, thresholds.pixel) == pytest.approx((above, above), rel=1e-6)
    assert (thresholds.alarm_rate, thresholds.min_area) == (0.4, 16)
    assert thresholds.image_scores == pytest.approx([10 / 255, 20 / 255, 30 / 255, 40 / 255])
    # the median, the lower of the two in the middle, is at 0.25, the threshold at 0.5
    assert thresholds.good_scores == pytest.approx([1 / 6, 0.25, 0.5, 0.75], abs=1e-5)
    detector = EdgeDetector(output, cache=None)
    predictions = detector.predict_batch(sorted(good.iterdir()))
    assert [prediction.label for prediction in predictions] == [True, False, False, False]
    assert [prediction.p_value <= 0.4 for prediction in predictions] == [True, False, False, False]
    assert predictions[0].score == pytest.approx(0.75, abs=1e-5)
    assert read_record(exported).thresholds == Thresholds(0.9, 0.8)


def test_a_region_counts_from_its_area_on(exported, good, tmp_path):
    one, many = (
        calibrate_export(exported, good, tmp_path / "new.xml", 0.2, min_area=area)[0].pixel for area in (30, 31)
    )
    assert one == pytest.approx(40 / 255)
    assert many < one  # the spot has 5 x 6 pixels


def test_deep_images_score_as_their_eight_bit_copies(exported, good, tmp_path):
    usual, _ = calibrate_export(exported, good, tmp_path / "usual.xml", 0.2)
    for path in good.iterdir():
        grey = np.asarray(Image.open(path))[..., 0]
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    deep, _ = calibrate_export(exported, good, tmp_path / "deep.xml", 0.2)
    assert deep.image_scores == pytest.approx(usual.image_scores)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alarm_rate": 0.05}, CalibrationError, "takes 19 good calibration images, but there are 4"),
        ({"alarm_rate": 1.5}, CalibrationError, "give a share above 0 and below 1"),
        ({"alarm_rate": 0.2, "min_area": 0}, ConfigurationError, "min_area must be 1 pixel or more"),
        ({"alarm_rate": 0.2, "min_area": 5000}, ConfigurationError, "map, which has 40 x 48: give a smaller one"),
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


def test_thresholds_by_hand(exported, good, tmp_path):
    calibrated, _ = calibrate_export(exported, good, tmp_path / "new.xml", 0.4)
    image = EdgeDetector(tmp_path / "new.xml", cache=None).predict(good / "0.png")
    found = set_thresholds(tmp_path / "new.xml", tmp_path / "new.xml", image=50 / 255)
    assert found == replace(calibrated, image=50 / 255, alarm_rate=None)
    assert read_record(tmp_path / "new.xml").thresholds == found
    by_hand = EdgeDetector(tmp_path / "new.xml", cache=None)
    assert (image.label, by_hand.predict(good / "0.png").label) == (True, False)  # a grey of 40
    assert by_hand.predict(good / "0.png").p_value == image.p_value
    assert by_hand.predict(np.full((40, 48), 51, np.uint8)).label
    assert by_hand.predict(good / "0.png").mask.any()  # the pixel threshold stays
    plain = set_thresholds(exported, tmp_path / "plain.xml", image=0.2, pixel=0.3)
    assert plain == Thresholds(0.2, 0.3)
    assert EdgeDetector(tmp_path / "plain.xml", cache=None).predict(good / "0.png").p_value is None


def test_thresholds_by_hand_need_one_for_images(tmp_path, good):
    path = write_model(
        with_thresholds(network(), Thresholds(0.9)), ModelRecord("Tiny", "0", "FP32"), tmp_path / "m.xml"
    )
    with pytest.raises(ConfigurationError, match=r"m.xml has no thresholds: give one for images .--image-threshold"):
        set_thresholds(path, path, pixel=0.3)
    assert set_thresholds(path, path, image=0.3) == Thresholds(0.3, 0.3)
    assert not EdgeDetector(path, cache=None).predict(good / "0.png").label
