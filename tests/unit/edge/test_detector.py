"""The detector on a tiny model, against float64 numpy."""

import logging
import os
import re
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixedteacher_edge import EdgeDetector
from mixedteacher_edge.__main__ import main
from mixedteacher_edge.decoding import shrink
from mixedteacher_edge.errors import ConfigurationError, DataError, ExportedModelError
from mixedteacher_edge.graph import OLDEST_OPENVINO

from .conftest import OUTPUTS, expected_map, save_model, write_record


def assert_expected(prediction, rgb):
    anomaly_map = expected_map(rgb)
    assert prediction.score == pytest.approx(anomaly_map.mean(), abs=1e-5)
    assert prediction.anomaly_map.dtype == np.float32
    np.testing.assert_allclose(prediction.anomaly_map, anomaly_map, atol=1e-6)
    assert prediction.mask.dtype == np.bool_
    far = abs(anomaly_map - 0.5) > 1e-6
    assert np.array_equal(prediction.mask[far], (anomaly_map >= 0.5)[far])
    assert prediction.label is bool(anomaly_map.mean() > 0.5)


def assert_equal(first, second):
    assert (first.score, first.label, first.p_value) == (second.score, second.label, second.p_value)
    assert np.array_equal(first.anomaly_map, second.anomaly_map)
    assert np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("shape", [(48, 40), (33, 70)])
def test_every_kind_of_image(model, tmp_path, shape):
    rgb = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "i.png")
    path = tmp_path / "i.png"
    detector = EdgeDetector(model)
    rgba = np.dstack([rgb, rgb[..., 0]])
    floats = (rgb / 255, (rgb / 255).astype(np.float32))
    sixteen = rgb.astype(np.uint16) * 257
    for image in (rgb, path, str(path), path.read_bytes(), Image.fromarray(rgb), rgba, *floats, sixteen):
        assert_expected(detector.predict(image), rgb)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey(model, tmp_path, dtype):
    grey = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, (48, 40), dtype)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    detector = EdgeDetector(model)
    for image in (grey, grey[..., None], tmp_path / "grey.png"):
        assert_expected(detector.predict(image), np.stack([grey] * 3, axis=-1))


def test_predictions_are_copies(model):
    detector = EdgeDetector(model)
    black, white = (np.full((48, 40, 3), value, np.uint8) for value in (0, 255))
    first = detector.predict(black)
    detector.predict(white)
    assert not first.anomaly_map.any()
    assert not first.mask.any()


def test_p_value(model, tmp_path):
    detector = EdgeDetector(model)
    for value, expected in ((0, 1.0), (64, 3 / 5), (255, 1 / 5)):  # calibration scores 0.1, 0.2, 0.3, 0.4
        assert detector.predict(np.full((32, 32), value, np.uint8)).p_value == pytest.approx(expected)
    without = EdgeDetector(save_model(tmp_path / "other.xml", record=False))
    assert without.predict(np.zeros((32, 32), np.uint8)).p_value is None


def test_properties(model, tmp_path):
    assert EdgeDetector(model).record.model == "Tiny"
    assert EdgeDetector(save_model(tmp_path / "fixed.xml", size=(36, 44), record=False)).record is None


def test_bin_and_onnx_paths(model, tmp_path, rgb):
    assert_expected(EdgeDetector(model.with_suffix(".bin")).predict(rgb), rgb)
    onnx = pytest.importorskip("onnx")
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    outputs = [info("anomaly_map", 1, [None, 1, None, None]), info("pred_score", 1, [None, 1, 1, 1])]
    outputs += [info("pred_label", 9, [None, 1, 1, 1]), info("pred_mask", 9, [None, 1, None, None])]
    nodes = [node("ReduceMean", ["image"], ["anomaly_map"], axes=[1]), node("GlobalAveragePool", ["anomaly_map"], ["pred_score"])]  # fmt: skip # noqa: E501
    nodes += [node("Greater", [a, "half"], [b]) for a, b in (("pred_score", "pred_label"), ("anomaly_map", "pred_mask"))]  # fmt: skip # noqa: E501
    half = onnx.numpy_helper.from_array(np.float32(0.5).reshape(1), "half")
    graph = onnx.helper.make_graph(nodes, "tiny", [info("image", 1, [None, 3, None, None])], outputs, [half])
    file = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(file, tmp_path / "model.onnx")
    score = EdgeDetector(tmp_path / "model.onnx").predict(rgb).score
    assert score == pytest.approx(rgb.astype(np.float64).mean() / 255, abs=1e-5)


@pytest.mark.parametrize("hint", ["LATENCY", "THROUGHPUT"])
def test_batch_equals_single(model, rgb, hint):
    detector = EdgeDetector(model, performance_hint=hint, num_threads=1)
    stack = np.stack([np.roll(rgb, shift, axis=0) for shift in range(9)])
    mixed = [stack[0], stack[1] / 255, Image.fromarray(stack[2]), stack[3][..., 0]]
    for images in (stack, list(stack), mixed, []):
        batch = detector.predict_batch(images)
        assert len(batch) == len(images)
        for prediction, image in zip(batch, images, strict=True):
            assert_equal(prediction, detector.predict(image))


def test_batch_with_an_unreadable_image_raises(model, rgb, tmp_path):
    detector = EdgeDetector(model)
    with pytest.raises(DataError, match="There is no image .*gone.png"):
        detector.predict_batch([rgb, rgb, tmp_path / "gone.png", rgb])
    assert_expected(detector.predict(rgb), rgb)


class Reader:
    """Images of 300 different scores, mixed in type, that counts how many were read."""

    def __init__(self, total=300, broken=None):
        self.total, self.broken, self.read = total, broken, 0

    def image(self, number):
        image = np.full((32, 32 + number % 3), number % 256, np.uint8)
        return image / 255 if number % 7 == 0 else image

    def __iter__(self):
        for number in range(self.total):
            self.read += 1
            yield b"broken" if number == self.broken else self.image(number)


@pytest.mark.parametrize(("queue_size", "hint"), [(None, "LATENCY"), (None, "THROUGHPUT"), (1, "LATENCY"), (5, "LATENCY")])  # fmt: skip # noqa: E501
def test_stream_keeps_the_order_and_reads_no_further(model, queue_size, hint):
    detector = EdgeDetector(model, performance_hint=hint)
    reader = Reader(broken=123)
    items = detector.stream(reader, queue_size)
    assert reader.read == 0
    taken = 0
    for number, item in enumerate(items):
        assert reader.read <= number + 1 + (queue_size or detector.runner._compiled.best_queue_size)
        assert item.name == str(number)
        if number == 123:
            assert item.prediction is None
            assert item.error == "Cannot read the image 123 (not a known image format): replace the file or remove it."
        else:
            assert item.error is None
            assert item.prediction.score == pytest.approx(number % 256 / 255, abs=1e-5)
        taken += 1
    assert taken == 300


def test_stream_with_nothing_but_unreadable_images(model):
    items = list(EdgeDetector(model).stream([b"", b"x", np.zeros((2, 2), np.uint8)], 2))
    assert [item.name for item in items] == ["0", "1", "2"]
    assert all(item.prediction is None and item.error for item in items)


def test_stream_names(model, rgb, tmp_path):
    path = tmp_path / "i.png"
    Image.fromarray(rgb).save(path)
    items = list(EdgeDetector(model).stream([path, str(path), rgb, ("left", rgb), ("gone", tmp_path / "g.png")]))
    assert [item.name for item in items] == [str(path), str(path), "2", "left", "gone"]
    assert items[-1].error == "There is no image gone: check the path."


def test_stream_of_one_buffer_that_is_written_again(model):
    buffer = np.empty((64, 64, 3), np.uint8)

    def camera():
        for value in range(50):
            buffer[:] = value
            yield buffer

    for value, item in enumerate(EdgeDetector(model).stream(camera(), 4)):
        assert item.prediction.score == pytest.approx(value / 255, abs=1e-5)


def test_abandoned_and_interleaved_streams(model, rgb):
    detector = EdgeDetector(model)
    for _ in range(20):
        endless = ((str(number), rgb) for number in count())
        assert [item.name for item in islice(detector.stream(endless, 6), 3)] == ["0", "1", "2"]
    first, second = detector.stream(Reader(40), 3), detector.stream(Reader(40), 2)
    for one, other in zip(first, second, strict=True):
        assert_equal(one.prediction, other.prediction)
        assert_expected(detector.predict(rgb), rgb)


def test_an_error_of_the_reader_passes_through(model, rgb):
    def images():
        yield from [rgb] * 5
        raise OSError("unplugged")

    detector = EdgeDetector(model)
    with pytest.raises(OSError, match="unplugged"):
        list(detector.stream(images(), 3))
    assert_expected(detector.predict(rgb), rgb)


@pytest.mark.parametrize("queue_size", [1, 3, 9])
def test_images_in_progress_are_judged_before_an_error_of_the_reader_passes_through(model, rgb, queue_size):
    def images():
        yield from [rgb] * 5
        raise OSError("unplugged")

    judged: list[str] = []
    items = EdgeDetector(model).stream(images(), queue_size)
    with pytest.raises(OSError, match="unplugged"):
        judged.extend(item.name for item in items)
    assert judged == ["0", "1", "2", "3", "4"]


def test_fixed_size(tmp_path):
    detector = EdgeDetector(save_model(tmp_path / "model.xml", size=(36, 44), record=False))
    rgb = np.random.default_rng(3).integers(0, 256, (36, 44, 3), np.uint8)
    assert_expected(detector.predict(rgb), rgb)
    other = np.zeros((40, 50), np.uint8)
    sentence = "is 50 x 40 pixels, but the model takes 44 x 36: resize the image, or export the model without a fixed"
    with pytest.raises(DataError, match=sentence):
        detector.predict(other)
    first, second, third = detector.stream([rgb, other, rgb])
    assert sentence in second.error
    assert_equal(first.prediction, third.prediction)


def test_cache(model, rgb, tmp_path):
    EdgeDetector(model).predict(rgb)
    folder = model.with_name(".openvino_cache")
    (blob,) = folder.iterdir()
    before = blob.stat().st_ino
    detector = EdgeDetector(model)
    assert_expected(detector.predict(rgb), rgb)
    assert list(folder.iterdir()) == [blob]
    assert blob.stat().st_ino == before  # read, not written again
    assert_expected(detector.predict(rgb / 255), rgb)
    assert len(list(folder.iterdir())) == 2
    EdgeDetector(model, cache=tmp_path / "deep" / "cache").predict(rgb)
    assert list((tmp_path / "deep" / "cache").iterdir())


def test_another_model_and_other_settings_are_kept_apart(tmp_path, rgb):
    first, second = save_model(tmp_path / "a.xml"), save_model(tmp_path / "b.xml", gain=0.5)
    for model in (first, second):
        for arguments in ({}, {"precision": "auto"}, {"num_threads": 1}, {"performance_hint": "THROUGHPUT"}):
            EdgeDetector(model, cache=tmp_path / "cache", **arguments).predict(rgb)
    scores = [EdgeDetector(model, cache=tmp_path / "cache").predict(rgb).score for model in (first, second)]
    assert scores[1] == pytest.approx(scores[0] / 2)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:9], lambda b: b[: len(b) // 2], lambda b: b"x" + b[1:]])
def test_a_damaged_cache_does_not_stop_a_start(model, rgb, damage):
    EdgeDetector(model).predict(rgb)
    (blob,) = model.with_name(".openvino_cache").iterdir()
    blob.write_bytes(damage(blob.read_bytes()))
    assert_expected(EdgeDetector(model).predict(rgb), rgb)


def test_no_cache(model, rgb):
    before = sorted(model.parent.iterdir())
    EdgeDetector(model, cache=None).predict(rgb)
    assert sorted(model.parent.iterdir()) == before


def test_an_unwritable_cache_is_not_used(model, rgb, tmp_path, caplog):
    file = tmp_path / "file"
    file.write_text("")
    for cache in (file, file / "below"):
        assert_expected(EdgeDetector(model, cache=cache).predict(rgb), rgb)
        assert f"Nothing can be written to {cache}" in caplog.text
    caplog.clear()
    model.with_name(".openvino_cache").write_text("")
    assert_expected(EdgeDetector(model).predict(rgb), rgb)
    assert not caplog.text


def test_a_cache_that_breaks_is_not_used(model, rgb, tmp_path, caplog):
    detector = EdgeDetector(model, cache=tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("")
    assert_expected(detector.predict(rgb), rgb)
    assert (tmp_path / "cache").is_file()


@pytest.mark.parametrize("kind", ["device", "performance_hint", "precision", "num_threads", "queue_size"])
def test_wrong_arguments(model, kind):
    wrong = {
        "device": ("TPU", "There is no device 'TPU': choose one of AUTO, CPU"),
        "performance_hint": ("FAST", "performance_hint is 'FAST': choose one of LATENCY, THROUGHPUT"),
        "precision": ("bf16", "precision is 'bf16': choose one of f32, auto"),
        "num_threads": (0, "num_threads is 0 for the device CPU: give 1 or more, and only for the device CPU"),
        "queue_size": (0, "queue_size is 0: give 1 or more"),
    }
    value, sentence = wrong[kind]
    with pytest.raises(ConfigurationError, match=sentence):
        EdgeDetector(model).stream([], value) if kind == "queue_size" else EdgeDetector(model, **{kind: value})


@pytest.mark.parametrize("arguments", [{"precision": "auto"}, {"device": "AUTO"}, {"num_threads": 1}])
def test_right_arguments(model, rgb, arguments):
    prediction = EdgeDetector(model, **arguments).predict(rgb)
    assert prediction.score == pytest.approx(expected_map(rgb).mean(), abs=1e-2)


def refused(path, sentence):
    with pytest.raises(ExportedModelError, match=sentence) as info:
        EdgeDetector(path)
    assert "\n" not in str(info.value)


def test_refused_files(model, tmp_path):
    refused(tmp_path / "gone.xml", "There is no model .*gone.xml: check the path")
    refused(tmp_path / "model.ckpt", "model.ckpt is no exported model: give the .xml or the .onnx file")
    for name in ("junk.xml", "junk.onnx"):
        (tmp_path / name).write_text("hello")
        (tmp_path / "junk.bin").write_text("")
        refused(tmp_path / name, f"{name} is no model that OpenVINO can read, or it is damaged .*: copy the folder")


def test_a_model_for_a_later_openvino(tmp_path):
    model = save_model(tmp_path / "model.xml", record=False)
    model.write_text(model.read_text().replace('version="opset1"', 'version="opset99"'))
    refused(model, "model.xml needs a later OpenVINO than .* opset99.: update openvino .2025.4 or newer")


def test_the_oldest_openvino_is_the_same_wherever_it_is_named():
    """2025.3 reads no opset16, which exports have."""
    root = Path(__file__).parents[3]
    for file in (root / "pyproject.toml", root / "packaging" / "edge" / "pyproject.toml"):
        assert re.findall(r'"openvino>=([\d.]+)"', file.read_text()) == [OLDEST_OPENVINO]


@pytest.mark.parametrize("record", [True, False])
def test_damaged_weights(tmp_path, record):
    model = save_model(tmp_path / "model.xml", record=record)
    weights = model.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:8])
    refused(model, "model.bin is not the file that metadata.json" if record else "model.xml is no model that OpenVINO")
    weights.unlink()
    refused(model, "The model's file .*model.bin is missing: copy the folder again, or export again")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"outputs": OUTPUTS[:2]}, "was exported without thresholds: export it with a post-processor"),
        ({"outputs": OUTPUTS[1:]}, "has no output anomaly_map: give a model that anomalib exported"),
        ({"outputs": OUTPUTS[:1]}, "has no output pred_score and no pred_label and no pred_mask"),
        ({"channels": 1}, "does not take one RGB image"),
    ],
)
def test_refused_graphs(tmp_path, arguments, sentence):
    refused(save_model(tmp_path / "model.xml", record=False, **arguments), sentence)


def test_a_model_without_a_record_works_with_one_warning(tmp_path, rgb, caplog):
    with caplog.at_level(logging.WARNING):
        detector = EdgeDetector(save_model(tmp_path / "model.xml", record=False))
    assert_expected(detector.predict(rgb), rgb)
    (message,) = caplog.messages
    assert message.startswith("There is no record of ")


def test_a_score_that_is_not_finite(tmp_path, rgb):
    detector = EdgeDetector(save_model(tmp_path / "model.xml", gain=np.nan))
    with pytest.raises(ExportedModelError, match="score of the image .* is nan"):
        detector.predict(rgb)


def test_a_model_without_a_record_and_without_thresholds(tmp_path, rgb, folder, capsys):
    """Its graph compares raw scores with 0.5 and would call every image a defect."""
    model = save_model(tmp_path / "raw.xml", record=False, gain=40)
    sentence = "The model has no thresholds, or does not scale .* is [-0-9.]+, not in .0, 1..: train it with"
    detector = EdgeDetector(model)
    with pytest.raises(ExportedModelError, match=sentence):
        detector.predict(rgb)
    with pytest.raises(ExportedModelError, match=sentence):
        detector.predict_batch([rgb, rgb])
    with pytest.raises(ExportedModelError, match=sentence):
        list(EdgeDetector(save_model(tmp_path / "below.xml", record=False, gain=-1)).stream([rgb]))
    assert main(["predict", str(model), str(folder)]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert "The model has no thresholds, or does not scale" in captured.err.splitlines()[-1]


@pytest.mark.parametrize("value", [0, 255])
def test_scores_at_the_ends_need_no_record(tmp_path, value):
    detector = EdgeDetector(save_model(tmp_path / "model.xml", record=False, gain=1))
    assert detector.predict(np.full((32, 32, 3), value, np.uint8)).score == pytest.approx(value / 255, abs=1e-6)


def test_with_a_record_the_score_has_no_bounds(tmp_path, rgb):
    assert EdgeDetector(save_model(tmp_path / "model.xml", gain=40)).predict(rgb).score > 10


def test_a_threshold_of_ones_own(model, rgb):
    own = EdgeDetector(model).predict(rgb)
    assert own.threshold == 0.5
    for threshold, label in ((own.score, True), (np.nextafter(own.score, 1), False)):
        prediction = EdgeDetector(model, threshold=threshold).predict(rgb)
        assert (prediction.label, prediction.threshold, prediction.score) == (label, threshold, own.score)
        assert np.array_equal(prediction.mask, own.mask)


def test_bits_of_the_training_images(model, tmp_path):
    values = np.random.default_rng(4).integers(0, 4096, (48, 40), np.uint16)
    expected = EdgeDetector(model).predict(values / 4095)
    write_record(model, training_data={"images": 3, "sha256": "0", "bits": 12})
    assert_equal(EdgeDetector(model).predict(values), expected)
    assert EdgeDetector(model, bits=16).predict(values).score < 0.1
    assert EdgeDetector(model, max_pixels=100).read(values).dtype == np.float32


def test_large_images_are_resized_before_the_graph(model, rgb, monkeypatch):
    """The record names the size that the graph resizes to; the tiny model's does not resize."""
    monkeypatch.setattr("mixedteacher_edge.runner.LARGE", 48 * 40)
    write_record(model, image_size=(12, 20))
    assert EdgeDetector(model).predict(rgb).anomaly_map.shape == (48, 40)
    large = np.repeat(rgb, 2, axis=1)
    prediction = EdgeDetector(model).predict(large)
    np.testing.assert_allclose(prediction.anomaly_map, expected_map(shrink(large, (12, 20))), atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_forked_child_judges_for_itself(model, rgb):
    """As gunicorn's workers with --preload, and multiprocessing's on Linux."""
    code = f"""
import os
import numpy as np
from mixedteacher_edge import EdgeDetector
rgb = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
detector = EdgeDetector({str(model)!r})
before = detector.predict(rgb).score
for used in (True, False):
    if (child := os.fork()) == 0:
        assert not used or [p.score for p in detector.predict_batch([rgb, rgb])] == [before, before]
        raise SystemExit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert detector.predict(rgb).score == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there memory is counted otherwise")
def test_memory_does_not_grow_with_the_number_of_image_sizes():
    """Without bounds this graph leaves 0.24 MB of each size."""
    code = """
import numpy as np, openvino, os
from openvino import opset13 as ops
from mixedteacher_edge.runner import ImageRunner
rng = np.random.default_rng(0)
image = node = ops.parameter([1, 3, -1, -1], np.float32)
for _ in range(6):
    channels = 16 if node is not image else 3
    weights = ops.constant(rng.normal(size=(16, channels, 3, 3)).astype(np.float32))
    node = ops.relu(ops.convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1]))
node.output(0).set_names({"map"})
graph = openvino.Model([ops.result(node)], [image], "tiny")
runner = ImageRunner(openvino.Core(), graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
memory = []
for number, (height, width) in enumerate(rng.permutation(np.mgrid[32:72, 32:72].reshape(2, -1).T)[:500]):
    list(runner.run([("", np.zeros((height, width, 3), np.uint8))], 1))
    if number in (199, 499):
        memory.append(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
assert memory[1] - memory[0] < 25, memory
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = plain | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_neither_torch_nor_anomalib_is_imported(model, folder, tmp_path):
    code = f"""
import sys
from mixedteacher_edge import EdgeDetector
from mixedteacher_edge.__main__ import main
EdgeDetector({str(model)!r}).predict({str(folder / "a.png")!r})
assert main(["predict", {str(model)!r}, {str(folder)!r}, "--overlays", {str(tmp_path / "o")!r}]) == 0
heavy = {{"anomalib_mixedteacher", "torch", "anomalib", "pandas", "scipy", "cv2", "matplotlib", "lightning"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_equals_anomalibs_inferencer(model, rgb, tmp_path, monkeypatch):
    from anomalib.deploy import OpenVINOInferencer

    monkeypatch.chdir(tmp_path)  # the inferencer writes a cache there
    Image.fromarray(rgb).save("i.png")
    theirs = OpenVINOInferencer(model, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"}).predict("i.png")
    ours = EdgeDetector(model).predict("i.png")
    assert ours.score == pytest.approx(theirs.pred_score.item(), abs=1e-4)
    assert ours.label == bool(theirs.pred_label.item())
    np.testing.assert_allclose(ours.anomaly_map, theirs.anomaly_map.squeeze(), atol=1e-4)
    far = abs(expected_map(rgb) - 0.5) > 1e-6
    assert np.array_equal(ours.mask[far], theirs.pred_mask.squeeze().astype(bool)[far])
