"""Images of any size and webs without an end, on a tiny graph of one tile, against float64 numpy."""

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from PIL import Image

from mixedteacher_edge import EdgeDetector, LineScan, ModelRecord, Thresholds
from mixedteacher_edge.__main__ import main
from mixedteacher_edge.conformal import conformal_threshold
from mixedteacher_edge.errors import ConfigurationError, DataError
from mixedteacher_edge.graph import RAW_MAP, RAW_SCORE, with_thresholds, write_model
from mixedteacher_edge.record import read_record

from .conftest import save_model
from .test_tiling import SHAPES, pooled

THRESHOLDS = Thresholds(0.6, 0.55)


def network() -> openvino.Model:
    """The map is the mean over the channels and 4 x 4 pixels, the score is its maximum."""
    image = ops.parameter([1, 3, 64, 64], np.float32, name="input")
    grey = ops.reduce_mean(image, np.array([1]), keep_dims=True)
    anomaly_map = ops.avg_pool(grey, [4, 4], [0, 0], [0, 0], [4, 4], exclude_pad=True)
    score = ops.reduce_max(anomaly_map, np.array([1, 2]), keep_dims=False)
    score = ops.reduce_max(score, np.array([1]), keep_dims=True)
    for node, name, friendly in ((score, "pred_score", RAW_SCORE), (anomaly_map, "anomaly_map", RAW_MAP)):
        node.output(0).set_names({name})
        node.set_friendly_name(friendly)
    return openvino.Model([ops.result(score), ops.result(anomaly_map)], [image], "tiny")


def export(path: Path, thresholds: Thresholds = THRESHOLDS, **values) -> Path:
    record = ModelRecord("Tiny", "0", "FP32", tile_size=64, thresholds=thresholds, **values)
    return write_model(with_thresholds(network(), thresholds), record, path)


@pytest.fixture
def model(tmp_path) -> Path:
    return export(tmp_path / "model.xml")


def picture(shape, seed=0, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def raw(image: np.ndarray) -> np.ndarray:
    return pooled(image.reshape(*image.shape[:2], -1)) / np.iinfo(image.dtype).max


def assert_expected(prediction, image, thresholds=THRESHOLDS):
    expected = raw(image)
    np.testing.assert_allclose(prediction.anomaly_map, thresholds.rescale(expected, "pixel"), atol=1e-5)
    assert prediction.score == pytest.approx(thresholds.rescale(expected.max()).item(), abs=1e-5)
    assert prediction.label == bool(expected.max() >= thresholds.image)
    far = abs(expected - thresholds.value("pixel")) > 1e-6
    assert np.array_equal(prediction.mask[far], (expected >= thresholds.value("pixel"))[far])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_map_is_that_of_the_whole_image(model, tmp_path, shape):
    grey, colour, deep = picture(shape), picture((*shape, 3)), picture(shape, dtype=np.uint16)
    detector = EdgeDetector(model)
    for image in (grey, colour, deep):
        assert_expected(detector.predict(image), image)
        Image.fromarray(image).save(tmp_path / "image.png")
        assert_expected(detector.predict(tmp_path / "image.png"), image)


def test_a_stream_keeps_the_order_and_goes_on_behind_what_it_cannot_read(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [picture((100, 200), seed=seed) for seed in range(4)]
    bad = np.full((64, 300), 0.5)
    bad[30, 290] = np.nan  # in the last tile
    sources = [images[0], tmp_path / "broken.png", images[1], bad, images[2], np.zeros((20, 64)), images[3]]
    for queue_size in (None, 1):
        items = list(EdgeDetector(model).stream(sources, queue_size))
        assert [item.error is None for item in items] == [True, False, True, False, True, False, True]
        assert "not a known image format" in items[1].error
        assert "not in [0, 1]" in items[3].error
        for item, image in zip(items[::2], images, strict=True):
            assert_expected(item.prediction, image)


@pytest.mark.parametrize("at_once", [1, 10, 500])
@pytest.mark.parametrize("block", [4, 64, 1000])
def test_a_line_scan_gives_the_map_of_the_whole_web(model, at_once, block):
    web = picture((301, 150))
    lines = (web[start : start + at_once] for start in range(0, 301, at_once))
    blocks = list(LineScan(EdgeDetector(model), (part[0] if at_once == 1 else part for part in lines), block))
    assert [part.first for part in blocks] == list(range(0, 301, block))
    assert [part.last for part in blocks] == [min(first + block, 301) for first in range(0, 301, block)]
    found = np.concatenate([part.prediction.anomaly_map for part in blocks])
    np.testing.assert_allclose(found, THRESHOLDS.rescale(raw(web), "pixel"), atol=1e-5)
    for part in blocks:
        top = raw(web)[part.first // 4 : -(-part.last // 4)].max()
        assert part.prediction.score == pytest.approx(THRESHOLDS.rescale(top).item(), abs=1e-5)


def test_the_map_is_divided_by_the_profile_across_the_web(tmp_path):
    profile = np.linspace(0.5, 2, 38)
    detector = EdgeDetector(export(tmp_path / "model.xml", profile=tuple(profile.tolist())))
    web = picture((300, 150))
    expected = THRESHOLDS.rescale(raw(web) / profile, "pixel")
    np.testing.assert_allclose(detector.predict(web).anomaly_map, expected, atol=1e-5)
    lines = np.concatenate([block.prediction.anomaly_map for block in LineScan(detector, [web])])
    np.testing.assert_allclose(lines, expected, atol=1e-5)
    items = list(detector.stream([picture((100, 160)), web]))
    assert items[0].error.startswith("An image is 160 pixels wide, the good images were 152: train without")
    assert items[1].prediction is not None


def test_a_line_scan_answers_while_lines_come(model):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield np.zeros(64, np.uint8)

    scan = LineScan(EdgeDetector(model), endless())
    for number, block in enumerate(scan):
        assert (block.first, block.last) == (number * 48, number * 48 + 48)
        assert read - block.last <= 3 * 64
        if number == 50:
            break


def test_a_line_scan_keeps_no_view_of_the_cameras_buffer(model):
    web, buffer = picture((300, 100)), np.empty((20, 100), np.uint8)

    def camera():
        for start in range(0, 300, 20):
            buffer[:] = web[start : start + 20]
            yield buffer

    lines = np.concatenate([block.prediction.anomaly_map for block in LineScan(EdgeDetector(model), camera())])
    np.testing.assert_allclose(lines, THRESHOLDS.rescale(raw(web), "pixel"), atol=1e-5)


def test_a_line_that_cannot_be_used_ends_an_endless_scan(model):
    def camera():
        yield np.full((500, 64), 0.5)
        while True:
            yield np.full((1, 64), np.nan)

    judged = []
    with pytest.raises(DataError, match="not in"):
        judged.extend(block.first for block in LineScan(EdgeDetector(model), camera()))
    assert judged[:8] == list(range(0, 8 * 48, 48))


def test_a_stream_tells_of_each_of_many_images_that_it_cannot_read(model):
    read = 0

    def camera():
        nonlocal read
        while True:
            read += 1
            yield b"no image"

    stream = EdgeDetector(model).stream(camera(), 2)
    for number in range(20):
        assert "not a known image format" in next(stream).error
        assert read <= number + 4
    stream.close()


def test_a_line_scan_names_what_it_cannot_use(model, tmp_path):
    detector = EdgeDetector(model)
    with pytest.raises(DataError, match=r"shape \(99,\) do not follow those before: give lines of one width"):
        list(LineScan(detector, [np.zeros((200, 100), np.uint8), np.zeros(99, np.uint8)]))
    with pytest.raises(ConfigurationError, match="block is 6 lines: give a multiple of 4"):
        LineScan(detector, [], 6)
    with pytest.raises(ConfigurationError, match="needs a model that works in tiles: train it with tile_size"):
        LineScan(EdgeDetector(save_model(tmp_path / "other.xml")), [])
    assert list(LineScan(detector, [])) == []


def test_what_a_lost_camera_had_sent_is_judged_first(model):
    def camera():
        yield picture((200, 64))
        raise OSError("unplugged")

    judged = []
    with pytest.raises(OSError, match="unplugged"):
        judged.extend(block.first for block in LineScan(EdgeDetector(model), camera()))
    assert judged == [0, 48, 96, 144]


@pytest.mark.parametrize(("per", "count"), [("image", 6), ("tile", 6 * 3 * 4), ("96", 6 * 2), ("32", 6 * 5)])
def test_a_budget_counts_images_tiles_or_lines(model, tmp_path, capsys, per, count):
    """Images of 140 x 200 pixels have 3 x 4 tiles side by side, of which the last ones end with the image."""
    good = [picture((140, 200), seed=seed) for seed in range(6)]
    (tmp_path / "good").mkdir()
    for number, image in enumerate(good):
        Image.fromarray(image).save(tmp_path / "good" / f"{number}.png")
    size = {"image": (140, 200), "tile": (64, 64)}.get(per) or (int(per), 200)
    maxima = [
        raw(image)[top // 4 : (top + size[0]) // 4, left // 4 : (left + size[1]) // 4].max()
        for image in good
        for top in [*range(0, 140 - size[0], size[0]), 140 - size[0]]
        for left in [*range(0, 200 - size[1], size[1]), 200 - size[1]]
    ]
    assert len(maxima) == count
    options = ["--alarm-rate", "0.4", "--min-area", "1", "--per", per, "--output", str(tmp_path / "own.xml")]
    assert main(["calibrate", str(model), "--good", str(tmp_path / "good"), *options]) == 0
    counted = {"image": "images", "tile": "tiles"}.get(per, f"stretches of {per} lines")
    assert f"{count} good {counted}, budget 0.4" in capsys.readouterr().out
    thresholds = read_record(tmp_path / "own.xml").thresholds
    assert thresholds.per == (int(per) if per.isdecimal() else per)
    assert thresholds.image == pytest.approx(conformal_threshold(maxima, 0.4), abs=1e-6)
    assert thresholds.image_scores == pytest.approx(sorted(maxima), abs=1e-6)
    detector = EdgeDetector(tmp_path / "own.xml")
    assert LineScan(detector, []).block == (int(per) if per.isdecimal() else 48)
    assert_expected(detector.predict(good[0]), good[0], thresholds)


@pytest.mark.parametrize("per", ["6", "0", "metre"])
def test_a_budget_of_something_else_is_refused(model, tmp_path, capsys, per):
    assert main(["calibrate", str(model), "--good", str(tmp_path), "--per", per]) == 1
    assert f"per is {per}: give image, tile, or a number of lines that is a multiple of 4" in capsys.readouterr().err
