"""The lean OpenVINO export: parity with the trained model, INT8, what is refused, and what a kill leaves behind."""

import json
import logging
from unittest import mock

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import Folder
from anomalib.deploy import CompressionType, OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.metrics import AUROC
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib_mixedteacher.benchmark.stream import resident_mb
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import CenterCrop, Compose, Grayscale, InterpolationMode, Normalize, Resize

from anomalib_mixedteacher import MixedTeacher, NormalCalibratedPostProcessor
from anomalib_mixedteacher.cli import main
from anomalib_mixedteacher.components.pre_processing import AntialiasedPreProcessor
from anomalib_mixedteacher.decoding import read_image
from anomalib_mixedteacher.edge import EdgeDetector
from anomalib_mixedteacher.errors import ConfigurationError, ExportedModelError, QuantizationError
from anomalib_mixedteacher.export import files, quantize
from anomalib_mixedteacher.export import openvino as openvino_export
from anomalib_mixedteacher.export.graph import network, resize_of, with_resize
from mixedteacher_edge.conformal import conformal_threshold, p_value
from mixedteacher_edge.graph import raw
from mixedteacher_edge.record import read_record, record_path

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
QUIET = {"verbose": False}


def folder(image_folder, **arguments):
    return Folder(
        "tiny", root=image_folder, normal_dir="good", normal_test_dir="good_test", abnormal_dir="bad",
        mask_dir="mask", train_batch_size=4, num_workers=0, seed=0, val_split_mode="from_test", val_split_ratio=0.5,
        **arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(image_folder, build_model, tmp_path_factory):
    """A model trained and calibrated on good images."""
    model = build_model(post_processor=NormalCalibratedPostProcessor(alarm_rate=0.4, min_area=4))
    engine = Engine(
        max_epochs=3, default_root_dir=tmp_path_factory.mktemp("trained"), accelerator="cpu", logger=False,
        enable_progress_bar=False,
    )  # fmt: skip
    engine.fit(model=model, datamodule=folder(image_folder))
    return model.eval(), engine


@pytest.fixture(scope="module", autouse=True)
def converted(trained):
    """The network converted once: tracing it takes longer than all that these tests are about."""
    graph = network(trained[0], **QUIET)

    def network_of(module, input_size=None, **kwargs):
        return graph.clone() if module is trained[0] else network(module, input_size, **kwargs)

    with mock.patch.object(openvino_export, "network", network_of):
        yield graph


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return trained[0].to_openvino(tmp_path_factory.mktemp("fp32"), onnx_kwargs=QUIET)


@pytest.fixture(scope="module")
def quantized(trained, image_folder, tmp_path_factory):
    return trained[0].to_openvino(
        tmp_path_factory.mktemp("int8"), compression_type=CompressionType.INT8_PTQ,
        datamodule=folder(image_folder), max_drop=1.0, onnx_kwargs=QUIET,
    )  # fmt: skip


def compiled(path):
    return openvino.Core().compile_model(path, "CPU", F32)


def test_graph_has_nothing_at_full_size_but_the_map(exported):
    """Every plane of the image's size behind the stems belongs to the final upsampling or the post-processor."""
    model = openvino.Core().read_model(exported)
    model.reshape([1, 3, 64, 64])
    convolutions = [node for node in model.get_ops() if "Convolution" in node.get_type_name()]
    assert max(node.output(0).shape[-1] for node in convolutions) == 32
    resizes = [node for node in model.get_ops() if node.get_type_name() == "Interpolate"]
    assert [tuple(node.output(0).shape) for node in resizes].count((1, 1, 64, 64)) == 1
    # batch normalisation of both teachers is folded: one addition to each convolution at most
    assert not [node for node in model.get_ops() if node.get_type_name() == "BatchNormInference"]


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (200, 333), (40, 32)])
def test_any_size_gives_what_training_gives(trained, exported, image_folder, size):
    image = Image.open(image_folder / "bad" / "1.png").resize(size[::-1])
    images = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = trained[0](images)
    result = compiled(exported)(images.numpy())
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_allclose(result[name], getattr(expected, name).numpy(), atol=1e-4)
    assert result["pred_mask"].dtype == bool
    assert result["pred_label"].item() == expected.pred_label.item()


def test_another_transform_is_exported_as_it_is(build_model, images, tmp_path):
    steps = [CenterCrop(64), Normalize([0.5] * 3, [0.25] * 3)]
    model = build_model(pre_processor=PreProcessor(Compose(steps)))
    model.model.load_teachers(model.teacher_weights)
    path = model.eval().to_openvino(tmp_path, input_size=(96, 96), onnx_kwargs=QUIET)
    batch = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected = model(batch).pred_score.numpy()
    np.testing.assert_allclose(compiled(path)(batch.numpy())["pred_score"], expected, rtol=1e-3)
    assert read_record(path).image_size == (96, 96)


@pytest.mark.parametrize(
    "steps",
    [
        [Resize((128, 128)), Resize((64, 64))],
        [Grayscale(3), Resize((64, 64))],
        [Resize((90, 110)), CenterCrop(80), Resize((64, 64))],
    ],
    ids=["two resizes", "grey first", "crop between"],
)
@pytest.mark.parametrize("pre_processor", [PreProcessor, AntialiasedPreProcessor])
def test_images_are_resized_in_the_graph_as_in_training(build_model, tmp_path, steps, pre_processor):
    transform = Compose([*steps, Normalize([0.5] * 3, [0.25] * 3)])
    model = build_model(pre_processor=pre_processor(transform)).eval()
    model.model.load_teachers(model.teacher_weights)
    path = model.to_openvino(tmp_path, input_size=(150, 190), onnx_kwargs=QUIET)
    batch = torch.rand(1, 3, 150, 190)
    with torch.no_grad():
        expected = model.model(transform(batch)).pred_score.numpy()
    np.testing.assert_allclose(compiled(path)(batch.numpy())["pred_score"], expected, rtol=1e-3)


@pytest.mark.parametrize("mode", [InterpolationMode.BICUBIC, InterpolationMode.NEAREST])
def test_only_a_bilinear_resize_is_the_graphs_own(build_model, mode):
    for interpolation, own in ((mode, False), (InterpolationMode.BILINEAR, True)):
        transform = Compose([Resize((64, 64), interpolation=interpolation), Normalize([0.5] * 3, [0.25] * 3)])
        assert (resize_of(build_model(pre_processor=PreProcessor(transform))) is not None) == own


def test_scores_that_thresholds_do_not_scale_are_refused_at_the_edge(build_model, converted, tmp_path, caplog):
    model = build_model(post_processor=PostProcessor(enable_normalization=False))
    model.model.load_teachers(model.teacher_weights)
    model.post_processor._image_threshold.fill_(2.0)
    model.post_processor._pixel_threshold.fill_(2.0)
    replaced = mock.patch.object(openvino_export, "network", return_value=converted.clone())
    with replaced, caplog.at_level(logging.WARNING):
        path = model.to_openvino(tmp_path, onnx_kwargs=QUIET)
    assert "does not scale scores by its thresholds, so EdgeDetector will refuse the model" in caplog.text
    with pytest.raises(ExportedModelError, match="calibrate it"):
        EdgeDetector(path, cache=None)


def test_a_folder_that_cannot_be_written_to_is_known_at_once(trained, tmp_path):
    (tmp_path / "file").touch()
    converted = mock.patch.object(openvino_export, "network", side_effect=AssertionError("converted"))
    with converted, pytest.raises(ConfigurationError, match="Cannot write to .*give another --export_root"):
        trained[0].to_openvino(tmp_path / "file", onnx_kwargs=QUIET)


def test_a_model_without_thresholds_is_told_and_refused_at_the_edge(build_model, converted, tmp_path, caplog):
    model = build_model()
    model.model.load_teachers(model.teacher_weights)
    replaced = mock.patch.object(openvino_export, "network", return_value=converted.clone())
    with replaced, caplog.at_level(logging.WARNING):
        path = model.to_openvino(tmp_path, onnx_kwargs=QUIET)
    assert "The model has no thresholds yet" in caplog.text
    with pytest.raises(ExportedModelError, match=r"was exported before its thresholds were found: calibrate it"):
        EdgeDetector(path, cache=None)


def test_what_cannot_be_exported_leaves_the_model_as_it_was(build_model, tmp_path):
    class Other(PostProcessor):
        pass

    model = build_model(post_processor=Other())
    with pytest.raises(ConfigurationError, match="The post-processor Other cannot be exported"):
        model.to_openvino(tmp_path, onnx_kwargs=QUIET)
    assert isinstance(model.post_processor, Other)


def test_fixed_size(trained, tmp_path):
    path = trained[0].to_openvino(tmp_path, input_size=(100, 80), onnx_kwargs=QUIET)
    model = openvino.Core().read_model(path)
    assert model.input(0).partial_shape.to_string() == "[?,3,100,80]"


def test_fp16_is_half_the_size(trained, exported, tmp_path):
    path = trained[0].to_openvino(tmp_path, compression_type=CompressionType.FP16, onnx_kwargs=QUIET)
    sizes = [file.with_suffix(".bin").stat().st_size for file in (path, exported)]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.02)
    assert read_record(path).precision == "FP16"


def test_record_tells_what_was_exported(trained, exported, teacher_folder):
    model = trained[0]
    record = read_record(exported)
    assert (record.model, record.precision, record.image_size) == ("MixedTeacher", "FP32", (64, 64))
    assert record.teacher_weights == str(teacher_folder)
    assert set(record.fingerprints) == {"resnet18", "efficientnet_b0"}
    assert record.training_data["images"] == 8
    assert len(record.training_data["sha256"]) == 64
    assert record.thresholds["image"] == pytest.approx(model.post_processor.image_threshold.item())
    assert record.calibration.alarm_rate == 0.4
    restored = MixedTeacher.load_from_checkpoint(trained[1].best_model_path, map_location="cpu")
    assert restored.provenance == model.provenance


def test_training_data_fingerprint_follows_the_contents(image_folder, tmp_path):
    from anomalib_mixedteacher.components.training_data import check_training_data, training_fingerprint

    def fingerprint(root):
        data = Folder("x", root=root, normal_dir=".", test_split_mode="none", val_split_mode="none", num_workers=0)
        data.setup()
        return training_fingerprint(data.train_data, check_training_data(data.train_data))

    contents = [path.read_bytes() for path in sorted((image_folder / "good").iterdir())]
    for index, content in enumerate(contents):
        (tmp_path / f"renamed{99 - index}.png").write_bytes(content)
    assert fingerprint(tmp_path) == fingerprint(image_folder / "good")
    (tmp_path / "renamed99.png").write_bytes(contents[1])
    assert fingerprint(tmp_path) != fingerprint(image_folder / "good")


class TestQuantization:
    def test_features_are_compared_in_float(self, quantized):
        model = openvino.Core().read_model(quantized)
        kinds = [node.get_type_name() for node in model.get_ops()]
        assert kinds.count("FakeQuantize") >= 10  # activations; weights are stored as integers
        fakes = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
        targets = {i.get_node().get_type_name() for n in fakes for i in n.output(0).get_target_inputs()}
        assert targets <= {"Convolution", "MaxPool", "Convert", "Multiply"}  # the last two unpack weights
        norms = [node for node in model.get_ops() if node.get_type_name() == "ReduceL2"]
        assert len(norms) == 8  # two features of each of four networks
        assert not {node.input_value(0).get_node().get_type_name() for node in norms} & {"FakeQuantize"}

    def test_which_convolutions_are_quantised(self, converted):
        """The ResNets behind their first convolutions; nothing of the EfficientNets, no residual sum."""
        floats = set(quantize.float_nodes(converted, ["efficientnet"]))
        labels = quantize._convolutions(converted)
        left = {label for name, label in labels.items() if name not in floats and "." in label}
        assert left
        assert all("resnet" in label for label in left)
        assert not {"model.teachers.resnet.extractor.net.conv1", "model.students.resnet.stem.0"} & left
        assert {"model.teachers.resnet.extractor.net.layer1.0.conv1", "model.students.resnet.stages.0.conv1"} <= left
        assert {n.get_friendly_name() for n in converted.get_ops() if n.get_type_name() == "Add"} <= floats

    def test_only_good_images_are_seen(self, trained, image_folder, tmp_path, monkeypatch):
        """anomalib calibrates on the validation set, which holds defects."""
        seen = []
        monkeypatch.setattr(quantize, "quantize", lambda model, images, keep: seen.extend(images) or model)
        trained[0].to_openvino(
            tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=folder(image_folder), onnx_kwargs=QUIET
        )
        resize = Resize((64, 64), antialias=True)
        good = [resize(read_image(p, as_tensor=True)).numpy() for p in sorted((image_folder / "good").iterdir())]
        assert len(seen) == len(good)
        for image in seen:
            assert min(np.abs(image[0] - known).max() for known in good) < 1e-6

    def test_thresholds_are_those_of_its_own_scores(self, trained, quantized, image_folder):
        datamodule = folder(image_folder)
        datamodule.setup()
        graph = openvino.Core().compile_model(raw(openvino.Core().read_model(quantized)), "CPU", F32)
        paths = datamodule.val_data.samples.query("label_index == 0").image_path
        scores = [graph(read_image(p, as_tensor=True)[None].numpy())["pred_score"].item() for p in paths]
        record = read_record(quantized)
        # in units of the spread of eight good images, a rounding that moves an integer step shows
        assert record.thresholds["image"] == pytest.approx(conformal_threshold(scores, 0.4), rel=1e-3)
        assert record.thresholds["image"] != trained[0].post_processor.image_threshold.item()  # the float model's
        assert len(record.calibration.scores) == len(scores)

    def test_other_images_do_not_set_the_thresholds(self, trained, image_folder, tmp_path, caplog):
        """A random split would: some of its validation images were trained on."""
        data = Folder(
            "other", root=image_folder, normal_dir="good_test", normal_test_dir="good", abnormal_dir="bad",
            num_workers=0, val_split_mode="from_test", seed=0,
        )  # fmt: skip
        with caplog.at_level(logging.WARNING):
            path = trained[0].to_openvino(
                tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=data, max_drop=1.0, onnx_kwargs=QUIET
            )
        assert "The good validation images are not those that set the thresholds" in caplog.text
        assert "The datamodule's training images are not those that the model was trained on" in caplog.text
        assert read_record(path).thresholds["image"] == pytest.approx(trained[0].post_processor.image_threshold.item())

    def test_one_datamodule_serves_two_exports(self, trained, image_folder, build_model):
        """A second setup would split anew, and take training images for the thresholds."""
        data = Folder(
            "good", root=image_folder, normal_dir="good", test_split_mode="none", val_split_mode="none", num_workers=0
        )
        held = []
        for _ in range(2):
            openvino_export._prepare(data, NormalCalibratedPostProcessor(held_out=0.25), None)
            held.append(sorted(data.val_data.samples.image_path))
        assert len(held[0]) == 2
        assert held[0] == held[1]

    def test_fp16_is_measured_as_it_is_written(self, trained, image_folder, tmp_path):
        path = trained[0].to_openvino(
            tmp_path, compression_type=CompressionType.FP16, datamodule=folder(image_folder), max_drop=1.0,
            onnx_kwargs=QUIET,
        )  # fmt: skip
        record = read_record(path)
        assert {"image_AUROC", "float_image_AUROC"} <= set(record.quality)
        graph = compiled(raw(openvino.Core().read_model(path)))
        datamodule = folder(image_folder)
        datamodule.setup()
        paths = datamodule.val_data.samples.query("label_index == 0").image_path
        scores = [graph(read_image(p, as_tensor=True)[None].numpy())["pred_score"].item() for p in paths]
        assert record.thresholds["image"] == pytest.approx(conformal_threshold(scores, 0.4), rel=1e-4)

    def test_quality_is_that_of_the_files(self, quantized, exported, image_folder):
        datamodule = folder(image_folder)
        datamodule.setup()
        record = read_record(quantized)
        samples = datamodule.test_data.samples
        for path, prefix in ((quantized, ""), (exported, "float_")):
            detector = EdgeDetector(path, cache=None)
            scores = [detector.predict(p).score for p in samples.image_path]
            assert record.quality[f"{prefix}image_AUROC"] == pytest.approx(roc_auc_score(samples.label_index, scores))

    def test_a_loss_above_the_budget_is_refused_and_nothing_written(self, trained, image_folder, tmp_path, monkeypatch):
        def ruin(model, images, keep):
            """Turn the score around: the worst that a quantisation could do."""
            model = model.clone()
            result = next(r for r in model.get_results() if "pred_score" in r.input_value(0).get_names())
            source = result.input_value(0)
            turned = openvino.opset13.negative(source)
            source.set_names(set())
            turned.output(0).set_names({"pred_score"})
            result.input(0).replace_source_output(turned.output(0))
            return model

        monkeypatch.setattr(quantize, "quantize", ruin)
        arguments = {"compression_type": CompressionType.INT8_PTQ, "onnx_kwargs": QUIET}
        with pytest.raises(
            QuantizationError, match=r"loses \d\.\d+ of image AUROC .* more than max_drop=0.002"
        ) as error:
            trained[0].to_openvino(tmp_path, datamodule=folder(image_folder), **arguments)
        assert "use INT8_ACQ, or FP16, or allow a larger max_drop" in str(error.value)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_the_layers_to_blame_are_named(self, converted):
        """A convolution whose weights were ruined is found, and not those behind it."""
        reference, ruined = converted.clone(), converted.clone()
        target = "model.students.resnet.stages.0.conv1.weight"
        constant = next(node for node in ruined.get_ops() if node.get_friendly_name() == target)
        worse = openvino.opset13.constant(np.float32(1.1) * constant.data)
        for consumer in constant.output(0).get_target_inputs():
            consumer.replace_source_output(worse.output(0))
        images = [np.random.default_rng(1).random((1, 3, 64, 64), dtype=np.float32)]
        (first, error), (_, second), *_ = quantize.blame(reference, ruined, images)
        assert first == target.removesuffix(".weight")
        assert error == pytest.approx(0.1, rel=1e-4)
        assert second < 1e-5

    def test_blame_of_a_real_quantisation(self, converted, quantized):
        images = [np.random.default_rng(1).random((1, 3, 64, 64), dtype=np.float32)]
        errors = [error for _, error in quantize.blame(converted, raw(openvino.Core().read_model(quantized)), images)]
        assert errors == sorted(errors, reverse=True)
        assert 1e-3 < errors[0] < 1

    def test_accuracy_aware_mode_watches_what_the_metric_reads(
        self, trained, converted, image_folder, tmp_path, monkeypatch
    ):
        measured = []

        def accurately(model, images, validation, measure, max_drop, keep):
            measured.append((measure(openvino.Core().compile_model(model, "CPU", F32), validation), max_drop))
            return model

        monkeypatch.setattr(quantize, "quantize_accurately", accurately)
        for metric in (None, AUROC(fields=["anomaly_map", "gt_mask"])):
            trained[0].to_openvino(
                tmp_path, compression_type=CompressionType.INT8_ACQ, datamodule=folder(image_folder), metric=metric,
                max_drop=0.1, onnx_kwargs=QUIET,
            )  # fmt: skip
        datamodule = folder(image_folder)
        datamodule.setup()
        graph = openvino.Core().compile_model(converted, "CPU", F32)
        resize = Resize((64, 64), antialias=True)
        samples = datamodule.val_data.samples
        results = [graph(resize(read_image(p, as_tensor=True))[None].numpy()) for p in samples.image_path]
        image = roc_auc_score(samples.label_index, [r["pred_score"].item() for r in results])
        assert measured[0] == (pytest.approx(image), 0.1)
        masks = [
            np.asarray(Image.open(p).resize((64, 64), Image.Resampling.NEAREST)) > 0 if p else np.zeros((64, 64), bool)
            for p in samples.mask_path
        ]
        pixel = roc_auc_score(np.ravel(masks), np.ravel([r["anomaly_map"] for r in results]))
        assert measured[1][0] == pytest.approx(pixel, abs=0.01)  # masks are resized to the nearest pixel in two ways

    def test_accuracy_aware_quantisation_runs(self, trained, image_folder, tmp_path):
        path = trained[0].to_openvino(
            tmp_path, compression_type=CompressionType.INT8_ACQ, datamodule=folder(image_folder), max_drop=1.0,
            onnx_kwargs=QUIET,
        )  # fmt: skip
        assert read_record(path).precision == "INT8_ACQ"

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"compression_type": "int8_ptq"}, "INT8_PTQ needs images: give a datamodule"),
            ({"max_drop": 2.0}, "max_drop must be a loss of AUROC between 0 and 1, not 2.0"),
        ],
    )
    def test_wrong_arguments(self, trained, tmp_path, arguments, sentence):
        with pytest.raises(ConfigurationError, match=sentence):
            trained[0].to_openvino(tmp_path, onnx_kwargs=QUIET, **arguments)

    def test_good_images_alone_suffice(self, trained, image_folder, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(quantize, "quantize", lambda model, images, keep: model)
        data = Folder(
            "good", root=image_folder, normal_dir="good", test_split_mode="none", val_split_mode="none", num_workers=0
        )
        with caplog.at_level(logging.WARNING):
            path = trained[0].to_openvino(
                tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=data, onnx_kwargs=QUIET
            )
        assert read_record(path).quality is None
        assert "No defective images" in caplog.text
        assert "The good validation images are not those that set the thresholds" in caplog.text

    def test_through_anomalibs_engine(self, trained, image_folder, build_model, tmp_path):
        path = trained[1].export(
            model=build_model(), export_type="openvino", export_root=tmp_path, compression_type="int8_ptq",
            datamodule=folder(image_folder), max_drop=1.0, ckpt_path=trained[1].best_model_path, onnx_kwargs=QUIET,
        )  # fmt: skip
        assert read_record(path).precision == "INT8_PTQ"


class TestFiles:
    def test_a_kill_at_any_moment_leaves_a_model_that_belongs_together_or_none(self, exported, tmp_path, monkeypatch):
        model = openvino.Core().read_model(exported)
        record = read_record(exported)
        path = tmp_path / "model.xml"
        files.write_model(model, record, path)
        old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        moves = 3
        for survived in range(moves):
            calls = []
            replace = type(path).replace

            def killed(self, target, survived=survived, calls=calls, replace=replace):
                calls.append(target)
                if len(calls) > survived:
                    raise KeyboardInterrupt
                return replace(self, target)

            with monkeypatch.context() as context:
                context.setattr(type(path), "replace", killed)
                with pytest.raises(KeyboardInterrupt):
                    files.write_model(model, record, path, compress_to_fp16=True)
            assert not path.exists()
            assert not list(tmp_path.glob(".export-*"))
            for name, content in old.items():
                (tmp_path / name).write_bytes(content)

    def test_a_failure_before_the_files_are_complete_leaves_the_old_model(self, exported, tmp_path, monkeypatch):
        model, record = openvino.Core().read_model(exported), read_record(exported)
        path = tmp_path / "model.xml"
        files.write_model(model, record, path)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

        def full_disk(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(openvino, "save_model", full_disk)
        with pytest.raises(OSError, match="No space left"):
            files.write_model(model, record, path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


class TestEdge:
    def test_checkpoint_openvino_and_edge_decide_alike(self, trained, exported, image_folder):
        """And the edge detector gives what anomalib's inferencer gives."""
        detector = EdgeDetector(exported, cache=None)
        inferencer = OpenVINOInferencer(exported, device="CPU", config=F32)
        paths = [p for kind in ("good", "good_test", "bad") for p in sorted((image_folder / kind).iterdir())]
        for path in paths:
            found, theirs = detector.predict(path), inferencer.predict(path)
            with torch.no_grad():
                expected = trained[0](read_image(path, as_tensor=True)[None])
            assert found.score == pytest.approx(theirs.pred_score.item(), abs=1e-4)
            np.testing.assert_allclose(found.anomaly_map, theirs.anomaly_map.squeeze(), atol=1e-4)
            assert found.score == pytest.approx(expected.pred_score.item(), abs=1e-4)
            if abs(expected.pred_score.item() - 0.5) > 1e-4:
                assert found.label == expected.pred_label.item()

    def test_p_value_is_that_of_the_raw_scores(self, trained, exported, image_folder):
        detector = EdgeDetector(exported, cache=None)
        model = trained[0]
        for path in sorted((image_folder / "bad").iterdir()):
            with torch.no_grad():
                image = read_image(path, as_tensor=True)[None]
                score = model.model(model.pre_processor.transform(image)).pred_score.item()
            assert detector.predict(path).p_value == pytest.approx(p_value(score, model.post_processor.image_scores))


class TestCalibrateExport:
    def test_new_thresholds(self, exported, image_folder, tmp_path, capsys):
        output = tmp_path / "new.xml"
        good = image_folder / "good"
        assert main([
            "calibrate", str(exported), "--good", str(good), "--alarm-rate=0.25", "--min-area=4",
            "--output", str(output),
        ]) == 0  # fmt: skip
        assert "8 good images, budget 0.25" in capsys.readouterr().out
        report = json.loads((tmp_path / "new-calibration.json").read_text())
        assert report["image_threshold"] == pytest.approx(sorted(report["scores"])[6])
        record = read_record(output)
        assert record.thresholds["image"] == pytest.approx(report["image_threshold"])
        assert record.fingerprints == read_record(exported).fingerprints
        detector = EdgeDetector(output, cache=None)
        alarms = [detector.predict(path).label for path in sorted(good.iterdir())]
        # above the 7th of 8: one, and again one where rounding decides about the threshold's own image
        assert 1 <= sum(alarms) <= 2
        assert raw(openvino.Core().read_model(output)).outputs[0].get_any_name() == "pred_score"

    def test_wrong_images_and_names_are_one_sentence(self, trained, exported, image_folder, tmp_path, capsys):
        arguments = ["--good", str(image_folder / "good"), "--alarm-rate=0.25"]
        fixed = trained[0].to_openvino(tmp_path / "fixed", input_size=(64, 64), onnx_kwargs=QUIET)
        assert main(["calibrate", str(fixed), *arguments]) == 1
        assert "is 96 x 96 pixels, but the model takes 64 x 64: resize the image" in capsys.readouterr().err
        assert main(["calibrate", str(exported), *arguments, "--output", str(tmp_path / "new")]) == 1
        assert "must end in .xml" in capsys.readouterr().err
        assert main(["calibrate", str(tmp_path / "none.xml"), *arguments]) == 1
        assert "There is no model" in capsys.readouterr().err

    def test_foreign_or_damaged_models_are_refused(self, trained, exported, image_folder, tmp_path, capsys):
        arguments = ["--good", str(image_folder / "good"), "--alarm-rate=0.25"]
        foreign = tmp_path / "foreign.xml"
        openvino.save_model(openvino.convert_model(torch.nn.ReLU(), example_input=torch.ones(1)), foreign)
        assert main(["calibrate", str(foreign), *arguments]) == 1
        assert "was not exported by anomalib-mixedteacher" in capsys.readouterr().err
        for file in (exported, exported.with_suffix(".bin"), record_path(exported)):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        with (tmp_path / "model.bin").open("r+b") as file:
            file.truncate(1000)
        assert main(["calibrate", str(tmp_path / "model.xml"), *arguments]) == 1
        assert "model.bin is not the file that metadata.json was written for" in capsys.readouterr().err
        with pytest.raises(ExportedModelError, match=r"model\.bin is not the file"):
            EdgeDetector(tmp_path / "model.xml")


def test_resize_is_left_out_where_it_would_do_nothing(converted):
    kinds = {}
    for size in ((64, 64), (80, 64), None):
        graph = with_resize(converted.clone(), size)
        kinds[size] = [node.get_type_name() for node in graph.get_ops()].count("MatMul")
    assert kinds == {(64, 64): 0, (80, 64): 2, None: 2}


def test_images_of_ever_new_sizes_take_no_more_memory(exported):
    """OpenVINO's antialiased resize keeps tables for each size: 20 MB at 300 x 400 pixels."""
    detector = EdgeDetector(exported, cache=None)
    rng = np.random.default_rng(0)
    resident = []
    for index in range(40):
        height, width = 300 + index, 400 - index
        detector.predict(rng.integers(0, 256, (height, width, 3), np.uint8))
        resident.append(resident_mb())
    assert resident[-1] - resident[9] < 100
