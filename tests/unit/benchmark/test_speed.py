"""Speed benchmark: counts by hand, structure of the measurements, and the whole command on two small models."""

import json
import math
import subprocess
import sys
from argparse import Namespace
from functools import partial

import numpy as np
import openvino
import pytest
from anomalib_mixedteacher.benchmark.exported_file import ExportedFile
from anomalib_mixedteacher.benchmark.layer_times import layer_table, layer_times
from anomalib_mixedteacher.benchmark.macs import count_macs
from anomalib_mixedteacher.benchmark.speed_report import Report, Row, Timing, markdown
from anomalib_mixedteacher.benchmark.timing import interleave, latencies, throughputs
from openvino import opset13

from anomalib_mixedteacher.benchmark import cold_start, speed, speed_models
from anomalib_mixedteacher.cli import main
from anomalib_mixedteacher.errors import ConfigurationError, ExportedModelError

SIDE = 16
IMAGE = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)


def weights(*shape):
    return opset13.constant(np.random.default_rng(0).random(shape, np.float32))


def convolution(data, kernel):
    return opset13.convolution(data, kernel, [1, 1], [1, 1], [1, 1], [1, 1])


def image_parameter(sides=(-1, -1)):
    return opset13.parameter([-1, 3, *sides], np.float32, name="input")


def save_model(path, sides=(-1, -1), bias=0.0):
    """A detector of one convolution, whose score is its largest response."""
    parameter = image_parameter(sides)
    largest = opset13.reduce_max(convolution(parameter, weights(4, 3, 3, 3)), np.array([1, 2, 3]), keep_dims=False)
    score = opset13.clamp(opset13.add(largest, opset13.constant(np.float32(bias))), 0, 1)
    score.output(0).set_names({"pred_score"})
    openvino.save_model(openvino.Model([score], [parameter]), path)
    return path


def test_multiply_adds_of_every_layer_type_are_those_by_hand():
    parameter = image_parameter()
    once = convolution(parameter, weights(4, 3, 3, 3))  # 4 x 16 x 16 outputs of 3 x 3 x 3
    depthwise = opset13.group_convolution(
        once, weights(4, 1, 1, 3, 3), [2, 2], [1, 1], [1, 1], [1, 1]
    )  # 4 x 8 x 8 of 9
    spread = opset13.convolution_backprop_data(depthwise, weights(4, 2, 2, 2), [2, 2])  # 4 x 8 x 8 inputs to 2 x 2 x 2
    grouped = opset13.group_convolution_backprop_data(spread, weights(2, 1, 3, 1, 1), [1, 1])  # 2 x 16 x 16 inputs to 3
    rows = opset13.reshape(grouped, np.array([0, 6, 256]), special_zero=True)
    product = opset13.matmul(rows, weights(6, 5), transpose_a=True, transpose_b=False)  # 256 x 5 outputs of 6
    model = openvino.Model([product], [parameter])
    model.reshape([1, 3, 16, 16])
    assert count_macs(model) == 1024 * 27 + 256 * 9 + 256 * 8 + 512 * 3 + 1280 * 6


def test_compressed_weights_count_as_plain_ones():
    parameter = image_parameter((8, 8))
    bytes_ = opset13.constant(np.ones((4, 3, 3, 3), np.int8))
    kernel = opset13.multiply(opset13.convert(bytes_, "f32"), opset13.constant(np.float32(0.1)))
    model = openvino.Model([convolution(parameter, kernel)], [parameter])
    model.reshape([1, 3, 8, 8])
    assert count_macs(model) == 256 * 27


def test_shapes_that_stay_dynamic_are_named():
    parameter = image_parameter()
    model = openvino.Model([convolution(parameter, weights(4, 3, 3, 3))], [parameter])
    with pytest.raises(ExportedModelError, match=r"is not fixed by the input's size: export with a fixed input size"):
        count_macs(model)


def test_interleaving_takes_turns_and_leaves_the_warm_up_out():
    order = []
    calls = {name: partial(order.append, name) for name in "abc"}
    seconds = interleave(calls, repetitions=4, warmup=2)
    assert {name: values.shape for name, values in seconds.items()} == dict.fromkeys("abc", (4,))
    turns = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert turns == ["bca", "cab", "abc", "bca", "cab", "abc"]


def test_files_of_dynamic_and_of_fixed_size_are_timed(tmp_path):
    files = [
        ExportedFile("free", save_model(tmp_path / "free.xml")),
        ExportedFile("fixed", save_model(tmp_path / "fixed.xml", (SIDE, SIDE)), "bf16"),
    ]
    seconds = latencies(files, IMAGE, threads=1, repetitions=3, warmup=1)
    assert {label: values.shape for label, values in seconds.items()} == {"free": (3,), "fixed (bf16)": (3,)}
    rates = throughputs(files, IMAGE, threads=None, repetitions=3)
    assert all(rate > 0 for rate in rates.values())
    layers = layer_times(files[0], IMAGE, repetitions=2)
    assert layers == sorted(layers, key=lambda layer: -layer.milliseconds)
    table = layer_table("free", layers)
    assert "| Convolution | 1 |" in table
    assert table.startswith("# Layer times of free\n")


def test_a_fresh_process_needs_no_torch(tmp_path):
    file = ExportedFile("tiny", save_model(tmp_path / "tiny.xml"))
    assert cold_start.measure_cold_start(file, SIDE, starts=1) > 0
    memory = cold_start.measure_memory(file, SIDE)
    assert memory is None or 10 < memory < 2000
    assert cold_start.measure_peak(threads=1, side=64) > 0
    code = (
        "import runpy, sys; runpy.run_module('anomalib_mixedteacher.benchmark.fresh_process', run_name='__main__');"
        "assert not {'torch', 'anomalib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, "run", file.path, str(SIDE), "f32"], check=True, stdout=subprocess.PIPE)


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(ExportedModelError, match=r"could not run the model \(ValueError: no such thing\)"):
        cold_start.run_fresh(["-c", "raise ValueError('no such thing')"], str(tmp_path))


def row(model, auroc=0.75, mostly_tied=False, trained=True, ratio=1.5, memory=200.4):
    timings = {1: Timing(12.345, (12.0, 13.0), ratio, 80.04, 0.5), 2: Timing(8.0, (7.5, 8.5), ratio, 160.0, 1.25)}
    return Row(model, "model.xml", 33.14, memory, 0.789, 2.5, trained, auroc, mostly_tied, timings)


def test_report_as_text():
    rows = [row("MixedTeacher", mostly_tied=True), row("EfficientAd", None, trained=False, ratio=None, memory=None)]
    head = ("mixedteacher benchmark speed", "2026-11-21", "0.1.0", "2026.4", "Some CPU", 2, 64, 50)
    products = {"EdgeDetector": 0.5, "OpenVINOInferencer": 5.0}
    text = markdown(Report(*head, {1: 53.3, 2: 100.0}, rows, products))
    assert text.startswith("# Speed of exported models\n\n    mixedteacher benchmark speed\n\n- 2026-11-21, anomalib")
    for line in (
        "- Some CPU, 2 cores",
        "| MixedTeacher | 33.1 | 200 | 0.79 | 2.50 | 0.750† |",
        "| EfficientAd | 33.1 | - | 0.79 | 2.50 | - \\* |",
        "On 1 core (float32 matrix product: 53 G multiply-adds/s):",
        "| MixedTeacher | 12.35 | 1.00 | 1.50 | 80.0 | 50% |",
        "| EfficientAd | 8.00 | 1.00 | - | 160.0 | 125% |",
    ):
        assert line in text.splitlines()
    assert "INT8 and bfloat16 are compared with the float32 peak as well" in text
    assert "\\* Not trained" in text
    assert "† More than half" in text
    assert "EdgeDetector 0.50 s, anomalib's OpenVINOInferencer 5.00 s, 10.0 times as long" in text
    assert "AUROC on the test images" not in text
    named = markdown(Report(*head, {1: 53.3}, rows, None, data="MagneticTile"))
    assert "- image AUROC on the test images of MagneticTile" in named.splitlines()
    plain = markdown(Report(*head, {1: 53.3}, rows[:0], None))
    assert "†" not in plain
    assert "Not trained" not in plain


def settings(output, **changes):
    values = {"data": "SyntheticTextures", "root": None, "image_size": 64, "images": 4, "epochs": 1}
    return Namespace(output=output, models=["Stfpm"], **(values | {"teacher_weights": "random"} | changes))


def test_other_settings_need_another_folder(tmp_path):
    speed_models.check_settings(settings(tmp_path))
    speed_models.check_settings(settings(tmp_path))
    with pytest.raises(ConfigurationError, match=r"made with epochs=1 instead of 2: give another folder as --output"):
        speed_models.check_settings(settings(tmp_path, epochs=2))


def test_untrained_efficient_ad_has_finite_statistics():
    model = speed_models._untrained_efficient_ad(settings(None)).model
    for statistics in (model.mean_std, model.quantiles):
        assert model.is_set(statistics)
        assert all(value.isfinite().all() for value in statistics.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models"], "There is nothing to measure"),
        (["--files", "Stfpm=a.xml"], "--files names Stfpm, which --models has as well"),
        (["--files", "a.xml"], "Cannot take 'a.xml' as a file: write NAME=PATH.xml"),
        (["--models", "--files", "own=nowhere.xml"], "There is no exported model nowhere.xml"),
        (["--models", "--files", "own=FIXED"], "takes images of 16 x 16 pixels: give --image-size 16"),
        (["--models", "--files", "own=BROKEN"], "cannot be read as an OpenVINO model: export it again"),
        (["--models", "EfficientAd"], "EfficientAd takes images of 256 pixels or more"),
        (["--models", "Stfpm", "--data", "MagneticTile"], "give their folder as --root"),
    ],
)
def test_an_error_is_one_sentence(arguments, sentence, tmp_path, capsys):
    (tmp_path / "broken.xml").write_text("<net")
    fixed = save_model(tmp_path / "fixed.xml", (SIDE, SIDE))
    arguments = [a.replace("FIXED", str(fixed)).replace("BROKEN", str(tmp_path / "broken.xml")) for a in arguments]
    assert main(["benchmark", "speed", "--image-size", "64", "--output", str(tmp_path), *arguments]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def few_images(tmp_path, monkeypatch):
    """SyntheticTextures with ten test images, half of them tested, and a small matrix product."""
    few = partial(speed_models.SyntheticTextures, root=tmp_path / "data", num_test_good=4, num_defects_per_kind=1)
    monkeypatch.setattr(speed_models, "SyntheticTextures", few)
    monkeypatch.setattr(speed, "measure_peak", partial(cold_start.measure_peak, side=256))


def test_given_files_are_scored_without_training(tmp_path, few_images, monkeypatch):
    path = save_model(tmp_path / "own.xml", bias=-1000.0)  # every score is clamped to 0
    arguments = ["speed", "--models", "--files", f"own={path}", "--image-size", "32", "--images", "2"]
    arguments += ["--repetitions", "1", "--cold-starts", "1"]
    speed.main([*arguments, "--data", "SyntheticTextures", "--profile", "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert report["data"] == "SyntheticTextures/weave"
    assert "- image AUROC on the test images of SyntheticTextures/weave" in (tmp_path / "out" / "speed.md").read_text()
    assert [(r["model"], r["auroc"], r["mostly_tied"]) for r in report["rows"]] == [("own", 0.5, True)]
    assert report["products"] is None
    assert report["rows"][0]["gmacs"] == pytest.approx(4 * 32 * 32 * 27 / 1e9)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "layers-own-f32.md", "speed.json", "speed.md", "speed.png",
    ]  # fmt: skip


def test_given_files_are_not_scored_on_data_that_nobody_named(tmp_path, few_images, monkeypatch):
    monkeypatch.setattr(speed, "prepare_data", None)
    path = save_model(tmp_path / "own.xml")
    arguments = ["speed", "--models", "--files", f"own={path}", "--image-size", "32", "--repetitions", "1"]
    speed.main([*arguments, "--cold-starts", "1", "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert [(r["auroc"], r["trained"]) for r in report["rows"]] == [(None, True)]
    assert report["data"] is None
    text = (tmp_path / "out" / "speed.md").read_text()
    assert "- image AUROC on" not in text
    assert "‡ Not scored: this command did not train the file" in text
    assert "| - ‡ |" in text


def test_wrong_data_are_reported_before_the_timing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "latencies", None)
    arguments = ["--models", "--files", f"own={save_model(tmp_path / 'own.xml')}", "--image-size", "32"]
    arguments += ["--data", "MagneticTile", "--output", str(tmp_path / "out")]
    wrong = {"give their folder as --root": [], "No images exp<k>_num_<id>.jpg": ["--root", str(tmp_path)]}
    for sentence, root in wrong.items():
        assert main(["benchmark", "speed", *arguments, *root]) == 1
        assert sentence in capsys.readouterr().err.splitlines()[-1]


def numbers(value):
    if isinstance(value, dict | list):
        return [n for v in (value.values() if isinstance(value, dict) else value) for n in numbers(v)]
    return [value] if isinstance(value, int | float) else []


def test_two_models_from_training_to_the_table(tmp_path, few_images, teacher_folder, monkeypatch, capsys):
    output = tmp_path / "out"
    arguments = ["benchmark", "speed", "--models", "MixedTeacher", "Stfpm", "--image-size", "64", "--images", "4"]
    arguments += ["--epochs", "1", "--repetitions", "2", "--cold-starts", "1", "--teacher-weights", str(teacher_folder)]
    quick = f"print({cold_start.RESULT!r} + '{{}}')"  # importing anomalib twice would take half of this test's time
    monkeypatch.setitem(cold_start.PRODUCTS, "OpenVINOInferencer", quick)
    assert main([*arguments, "--output", str(output)]) == 0
    assert (output / "speed.png").read_bytes().startswith(b"\x89PNG")
    text = (output / "speed.md").read_text()
    assert text in capsys.readouterr().out
    assert "anomalib's OpenVINOInferencer" in text
    assert "- image AUROC on the test images of SyntheticTextures/weave" in text
    report = json.loads((output / "speed.json").read_text())
    assert [r["model"] for r in report["rows"]] == ["MixedTeacher", "Stfpm"]
    for found in report["rows"]:
        assert 0 <= found["auroc"] <= 1
        assert found["trained"]
        assert all(t["latency_ms"] > 0 and t["ratio"] > 0 for t in found["timings"].values())
    assert report["products"].keys() == {"EdgeDetector", "OpenVINOInferencer"}
    assert len(numbers(report)) > 20
    assert all(math.isfinite(n) for n in numbers(report))
    # what is there is not trained again, and other settings do not mix with it
    monkeypatch.setattr(speed_models, "_train_and_export", None)
    same = settings(output, teacher_weights=str(teacher_folder))
    assert speed_models.prepare_models(same) == {"Stfpm": output / "Stfpm" / "weights" / "openvino" / "model.xml"}
    assert main([*arguments, "--output", str(output), "--images", "5"]) == 1
    assert "made with images=4 instead of 5" in capsys.readouterr().err
