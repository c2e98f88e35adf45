"""The lean OpenVINO export: what is in it, INT8, what is refused, and what a kill leaves behind."""

import copy
import logging

import numpy as np
import openvino
import pytest
import torch
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from anomalib.metrics import AUROC
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import Compose, Grayscale, InterpolationMode, Normalize, Resize

from anomalib_mixedteacher import NormalCalibratedPostProcessor
from anomalib_mixedteacher.components.pre_processing import AntialiasedPreProcessor
from anomalib_mixedteacher.decoding import read_image
from anomalib_mixedteacher.errors import ConfigurationError, ExportedModelError, QuantizationError
from anomalib_mixedteacher.export import openvino as openvino_export
from anomalib_mixedteacher.export import quality, quantize
from anomalib_mixedteacher.export.graph import network, resize_of, with_resize
from mixedteacher_edge import EdgeDetector
from mixedteacher_edge.conformal import conformal_threshold
from mixedteacher_edge.graph import raw, write_model
from mixedteacher_edge.record import read_record

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
SPLIT = {"val_split_mode": "from_test", "val_split_ratio": 0.5}


@pytest.fixture(scope="module")
def calibrated(build_model, make_data, tmp_path_factory):
    """A model trained and calibrated on good images, with the graph of its network."""
    model = build_model(post_processor=NormalCalibratedPostProcessor(alarm_rate=0.4, min_area=4))
    root = tmp_path_factory.mktemp("trained")
    engine = Engine(max_epochs=3, default_root_dir=root, accelerator="cpu", enable_progress_bar=False, logger=False)
    engine.fit(model=model, datamodule=make_data(**SPLIT))
    return model.eval(), network(model)


@pytest.fixture(scope="module")
def export(calibrated, tmp_path_factory):
    """Export that model, its network converted once: tracing it takes longer than all that these tests are about."""

    def of(folder=None, **arguments):
        with pytest.MonkeyPatch.context() as patch:
            for user in (openvino_export, quantize):
                patch.setattr(user, "network", lambda *_, **__: calibrated[1].clone())
            return calibrated[0].to_openvino(folder or tmp_path_factory.mktemp("export"), **arguments)

    return of


@pytest.fixture(scope="module")
def exported(export):
    return export()


@pytest.fixture(scope="module")
def quantized(export, make_data):
    return export(compression_type=CompressionType.INT8_PTQ, datamodule=make_data(**SPLIT), max_drop=1.0)


def compiled(path):
    return openvino.Core().compile_model(path, "CPU", F32)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (200, 333), (40, 32)])
def test_any_size_gives_what_training_gives(calibrated, exported, image_folder, size):
    image = Image.open(image_folder / "bad" / "1.png").resize(size[::-1])
    images = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = calibrated[0](images)
    result = compiled(exported)(images.numpy())
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_allclose(result[name], getattr(expected, name).numpy(), atol=1e-4)
    assert result["pred_mask"].dtype == bool
    assert result["pred_label"].item() == expected.pred_label.item()


@pytest.mark.parametrize("steps", [[Resize((128, 128)), Resize((64, 64))], [Grayscale(3), Resize((64, 64))]], ids=len)
@pytest.mark.parametrize("pre_processor", [PreProcessor, AntialiasedPreProcessor])
def test_images_are_resized_in_the_graph_as_in_training(build_model, tmp_path, steps, pre_processor):
    transform = Compose([*steps, Normalize([0.5] * 3, [0.25] * 3)])
    model = build_model(pre_processor=pre_processor(transform)).eval()
    model.model.load_teachers("packaged", [])
    path = model.to_openvino(tmp_path, input_size=(150, 190))
    batch = torch.rand(1, 3, 150, 190)
    with torch.no_grad():
        expected = model.model(transform(batch)).pred_score.numpy()
    np.testing.assert_allclose(compiled(path)(batch.numpy())["pred_score"], expected, rtol=1e-3)


@pytest.mark.parametrize("mode", [InterpolationMode.BICUBIC, InterpolationMode.NEAREST])
def test_only_a_bilinear_resize_is_the_graphs_own(build_model, mode):
    for interpolation, own in ((mode, False), (InterpolationMode.BILINEAR, True)):
        transform = Compose([Resize((64, 64), interpolation=interpolation), Normalize([0.5] * 3, [0.25] * 3)])
        assert (resize_of(build_model(pre_processor=PreProcessor(transform))) is not None) == own


def test_resize_is_left_out_where_it_would_do_nothing(calibrated):
    assert with_resize(calibrated[1].clone(), (64, 64)).get_ops() is not None
    count = len(calibrated[1].get_ops())
    assert len(with_resize(calibrated[1].clone(), (64, 64)).get_ops()) == count
    assert len(with_resize(calibrated[1].clone(), (64, 80)).get_ops()) > count


def test_a_model_without_thresholds_that_scale_is_told_and_refused_at_the_edge(
    build_model, calibrated, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(openvino_export, "network", lambda *_, **__: calibrated[1].clone())
    for folder, post_processor in (("none", True), ("unscaled", PostProcessor(enable_normalization=False))):
        model = build_model(post_processor=post_processor)
        if folder == "unscaled":
            model.post_processor._image_threshold.fill_(2.0)
            model.post_processor._pixel_threshold.fill_(2.0)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            path = model.to_openvino(tmp_path / folder)
        assert "has no thresholds that scale its scores: calibrate it" in caplog.text
        with pytest.raises(ExportedModelError, match="calibrate it"):
            EdgeDetector(path, cache=None)


def test_what_cannot_be_written_or_exported_is_known_at_once(build_model, export, tmp_path):
    class Other(PostProcessor):
        pass

    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Cannot write to .*give another --export_root"):
        export(tmp_path / "file")
    model = build_model(post_processor=Other())
    with pytest.raises(ConfigurationError, match="The post-processor Other cannot be exported"):
        model.to_openvino(tmp_path)
    assert isinstance(model.post_processor, Other)


def test_fixed_size_and_half_precision(export, exported, tmp_path):
    path = export(tmp_path, input_size=(100, 80), compression_type=CompressionType.FP16)
    assert openvino.Core().read_model(path).input(0).partial_shape.to_string() == "[?,3,100,80]"
    sizes = [file.with_suffix(".bin").stat().st_size for file in (path, exported)]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.02)
    assert read_record(path).precision == "FP16"


def test_record_tells_what_was_exported(calibrated, exported):
    model, record = calibrated[0], read_record(exported)
    assert (record.model, record.precision, record.image_size) == ("MixedTeacher", "FP32", (64, 64))
    assert record.teacher_weights == "packaged"
    assert set(record.fingerprints) == {"resnet18", "tf_efficientnet_lite0"}
    assert record.training_data["images"] == 8
    assert record.thresholds == model.post_processor.thresholds
    assert record.thresholds.alarm_rate == 0.4


class TestQuantization:
    def test_all_is_quantised_but_what_compares_and_sums_of_few_products(self, quantized):
        nodes = openvino.Core().read_model(quantized).get_ops()
        compared = quantize._reachable([node for node in nodes if node.get_type_name() == "ReduceL2"])
        for node in nodes:
            if node.get_type_name() in quantize.CONVOLUTIONS:
                weights = node.input_value(1).get_node()
                while weights.get_type_name() != "Constant":
                    weights = weights.input_value(0).get_node()
                groups = node.get_type_name() == "GroupConvolution"
                narrow = np.prod(node.input_value(1).get_shape()[1 + groups :]) <= 32
                in_float = node.get_friendly_name() in compared or narrow
                assert (weights.get_element_type() == openvino.Type.i8) != in_float
            elif node.get_type_name() in {"ReduceL2", "Log"}:
                assert node.output(0).get_element_type() == openvino.Type.f32

    def test_what_the_paper_unbounded_networks_need_stays_in_float(self, calibrated):
        kept = quantize.float_nodes(calibrated[1], keep=("efficientnet",))
        labels = quantize._convolutions(calibrated[1])
        assert {labels[name] for name in labels if name in kept} >= {v for v in labels.values() if "efficientnet" in v}

    def test_only_good_images_are_seen(self, export, image_folder, make_data, monkeypatch):
        seen = []
        monkeypatch.setattr(quantize, "quantize", lambda model, images, keep: seen.extend(images) or model)
        export(compression_type=CompressionType.INT8_PTQ, datamodule=make_data(**SPLIT))
        resize = Resize((64, 64), antialias=True)
        good = [resize(read_image(path, as_tensor=True)).numpy() for path in (image_folder / "good").iterdir()]
        assert len(seen) == 2 * len(good)  # for the statistics of good images, and to keep
        assert all(min(np.abs(image[0] - other).max() for other in good) < 1e-6 for image in seen)

    def test_rounding_does_not_raise_the_map_of_good_images(self, calibrated, make_data):
        module, exact = calibrated
        data = make_data(**SPLIT)
        data.setup()
        images = [image for image, _ in quality.batches(data.train_data, resize_of(module))]
        before = copy.deepcopy(module.model.state_dict())
        anew = quantize.restandardized(module, exact, images, images)
        graphs = {
            "float": exact,
            "rounded": quantize.quantize(exact.clone(), images),
            "ours": quantize.quantize(anew.clone(), images),
        }
        means = {}
        for name, graph in graphs.items():
            network = quality.compile_exactly(graph)
            means[name] = np.mean([network(image)["anomaly_map"].mean() for image in images])
        assert means["rounded"] > means["float"]
        assert abs(means["ours"] - means["float"]) < 0.2 * abs(means["rounded"] - means["float"])
        assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
        whitening, of_float = (
            {name: node.data for node in graph.get_ops() if "whitening" in (name := node.get_friendly_name())}
            for graph in (anew, exact)
        )
        assert sum(name.endswith("weight") for name in whitening) == 6
        assert not any(np.allclose(whitening[name], of_float[name], rtol=1e-3) for name in of_float)  # found anew

    def test_each_layer_gets_its_own_statistics_however_many_there_are(self, build_model, monkeypatch):
        """Of twelve whitenings the tenth comes behind the second by name."""
        monkeypatch.setattr(quantize, "quantize", lambda model, images, keep: model)
        model = build_model(efficientnet_blocks=[2, 3, 4, 5], pre_processor=PreProcessor(Resize((64, 64)))).eval()
        model.model.load_teachers("packaged", [])
        untouched = network(model)
        images = torch.rand(4, 3, 64, 64)
        found = quantize.restandardized(model, untouched, list(images[:, None].numpy()), list(images[:, None].numpy()))
        with torch.no_grad():
            model.model.anomaly_map_generator.set_good_statistics(
                [(model.model.teacher_features(images), model.model.student_features(images))]
            )
            expected = model.model(images).pred_score.numpy()
        np.testing.assert_allclose(quality.compile_exactly(found)(images.numpy())["pred_score"], expected, rtol=1e-4)

    def test_statistics_in_int8_take_images_of_several_sizes(self, build_model):
        """As where the transform does not resize."""
        model = build_model("Msfd", pre_processor=PreProcessor(Compose([Normalize([0.5] * 3, [0.25] * 3)]))).eval()
        model.model.load_teachers("packaged", [])
        images = [torch.rand(1, 3, 64, 64).numpy(), torch.rand(1, 3, 96, 128).numpy()]
        exact = network(model)
        raised = quality.compile_exactly(exact)(images[0])["pred_score"]
        ours = quality.compile_exactly(quantize.restandardized(model, exact, images, images))(images[0])["pred_score"]
        assert np.isfinite(ours).all()
        assert ours != raised

    def test_thresholds_are_those_of_its_own_scores(self, quantized, make_data):
        data = make_data(**SPLIT)
        data.setup()
        graph = openvino.Core().compile_model(raw(openvino.Core().read_model(quantized)), "CPU", F32)
        paths = data.val_data.samples.query("label_index == 0").image_path
        images = [read_image(path, as_tensor=True)[None].numpy() for path in paths]
        scores = [graph(image)["pred_score"].item() for image in images]
        assert read_record(quantized).thresholds.image == pytest.approx(conformal_threshold(scores, 0.4), rel=1e-3)

    def test_quality_is_that_of_the_files(self, quantized, exported, make_data):
        data = make_data(**SPLIT)
        data.setup()
        record, samples = read_record(quantized), data.test_data.samples
        for path, prefix in ((quantized, ""), (exported, "float_")):
            scores = [EdgeDetector(path, cache=None).predict(p).score for p in samples.image_path]
            assert record.quality[f"{prefix}image_AUROC"] == pytest.approx(roc_auc_score(samples.label_index, scores))

    def test_a_loss_beyond_chance_is_refused_and_nothing_written(self, export, make_data, tmp_path, monkeypatch):
        monkeypatch.setattr(quantize, "quantize", _turned)
        with pytest.raises(QuantizationError, match=r"loses \d\.\d+ of image AUROC .* with max_drop=0.002.* INT8_ACQ"):
            export(tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=make_data(**SPLIT), max_drop=0.002)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_loss_that_so_few_images_leave_open_is_told_with_its_interval(
        self, export, make_data, caplog, monkeypatch
    ):
        monkeypatch.setattr(quantize, "quantize", _turned)
        monkeypatch.setattr(quality, "least_losses", lambda *_: {"image_AUROC": (-0.1, 1.0), "pixel_AUROC": (0.0, 0.1)})
        with caplog.at_level(logging.WARNING):
            export(compression_type=CompressionType.INT8_PTQ, datamodule=make_data(**SPLIT), max_drop=0.002)
        assert "(95 %: -0.1000 to 1.0000)" in caplog.text
        assert "too few images to tell" in caplog.text

    def test_the_interval_covers_the_loss_of_much_larger_sets(self):
        """Scores of two graphs, of which one loses 0.05 of AUROC, drawn again and again."""
        rng, covered = np.random.default_rng(0), 0
        labels = np.repeat([0, 1], 2000)
        scores = rng.normal(labels * 1.5, 1)
        worse = scores + rng.normal(0, 0.5, len(scores))
        truth = roc_auc_score(labels, scores) - roc_auc_score(labels, worse)
        for _ in range(20):
            chosen = np.concatenate([rng.choice(2000, 30), 2000 + rng.choice(2000, 30)])
            pair = [_predictions(values[chosen], labels[chosen]) for values in (scores, worse)]
            low, high = quality.least_losses(*pair)["image_AUROC"]
            covered += low <= truth <= high
        assert covered >= 16  # 19 are expected
        for one in pair:
            one.maps = one.masks = torch.empty(60, 0, 0)  # images of several sizes
        assert quality.least_losses(*pair) == {"image_AUROC": (low, high)}

    def test_the_layers_to_blame_are_named(self, calibrated):
        """A convolution whose weights were ruined is found, and not those behind it."""
        reference, ruined = calibrated[1].clone(), calibrated[1].clone()
        target = "model.students.shared.stages.0.conv1.weight"
        constant = next(node for node in ruined.get_ops() if node.get_friendly_name() == target)
        worse = openvino.opset13.constant(np.float32(1.1) * constant.data)
        for consumer in constant.output(0).get_target_inputs():
            consumer.replace_source_output(worse.output(0))
        images = [np.random.default_rng(1).random((1, 3, 64, 64), dtype=np.float32)]
        (first, error), (_, second), *_ = quantize.blame(reference, ruined, images)
        assert first == target.removesuffix(".weight")
        assert error == pytest.approx(0.1, rel=1e-4)
        assert second < 1e-5

    def test_accuracy_aware_mode_watches_what_the_metric_reads(self, calibrated, export, make_data, monkeypatch):
        measured = []

        def accurately(model, images, validation, measure, max_drop, keep):
            measured.append((measure(openvino.Core().compile_model(model, "CPU", F32), validation), max_drop))
            return model

        monkeypatch.setattr(quantize, "quantize_accurately", accurately)
        for metric in (None, AUROC(fields=["anomaly_map", "gt_mask"])):
            export(
                compression_type=CompressionType.INT8_ACQ, datamodule=make_data(**SPLIT), metric=metric, max_drop=0.1
            )
        data = make_data(**SPLIT)
        data.setup()
        graph, resize = openvino.Core().compile_model(calibrated[1], "CPU", F32), Resize((64, 64), antialias=True)
        samples = data.val_data.samples
        results = [graph(resize(read_image(p, as_tensor=True))[None].numpy()) for p in samples.image_path]
        image = roc_auc_score(samples.label_index, [r["pred_score"].item() for r in results])
        assert measured[0] == (pytest.approx(image), 0.1)
        masks = [
            np.asarray(Image.open(p).resize((64, 64), Image.Resampling.NEAREST)) > 0 if p else np.zeros((64, 64), bool)
            for p in samples.mask_path
        ]
        pixel = roc_auc_score(np.ravel(masks), np.ravel([r["anomaly_map"] for r in results]))
        assert measured[1][0] == pytest.approx(pixel, abs=0.01)  # masks are resized to the nearest pixel in two ways

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"compression_type": "int8_ptq"}, "Datamodule must be provided for INT8_PTQ"),
            ({"max_drop": 2.0}, "max_drop must be between 0 and 1"),
        ],
    )
    def test_wrong_arguments(self, export, arguments, sentence):
        with pytest.raises(ConfigurationError, match=sentence):
            export(**arguments)

    def test_good_images_alone_suffice(self, export, make_data, caplog, monkeypatch):
        monkeypatch.setattr(quantize, "quantize", lambda model, images, keep: model.clone())
        data = make_data(
            normal_test_dir=None, abnormal_dir=None, mask_dir=None, test_split_mode="none", val_split_mode="none"
        )
        with caplog.at_level(logging.WARNING):
            path = export(compression_type=CompressionType.INT8_PTQ, datamodule=data)
        assert read_record(path).quality is None
        assert "No defective images" in caplog.text
        assert "The good validation images are not those that set the thresholds" in caplog.text


def _turned(model, images, keep):
    """Turn the score around: the worst that a quantisation could do."""
    del images, keep
    result = next(r for r in model.get_results() if "pred_score" in r.input_value(0).get_names())
    source = result.input_value(0)
    turned = openvino.opset13.negative(source)
    source.set_names(set())
    turned.output(0).set_names({"pred_score"})
    result.input(0).replace_source_output(turned.output(0))
    return model


def _predictions(scores, labels):
    from anomalib_mixedteacher.benchmark.scores import Predictions

    nothing = torch.zeros(len(labels), 2, 2)
    scores, labels = torch.from_numpy(scores), torch.from_numpy(labels)
    return Predictions(scores, nothing, labels, nothing.int(), [""] * len(labels))


def test_a_kill_at_any_moment_leaves_a_model_that_belongs_together_or_none(exported, tmp_path, monkeypatch):
    model, record, path = openvino.Core().read_model(exported), read_record(exported), tmp_path / "model.xml"
    write_model(model, record, path)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for survived in range(3):
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
                write_model(model, record, path, compress_to_fp16=True)
        assert not path.exists()
        assert not list(tmp_path.glob(".export-*"))
        for name, content in old.items():
            (tmp_path / name).write_bytes(content)


def test_a_graph_of_any_size_needs_something_that_fixes_the_size(build_model):
    model = build_model(pre_processor=PreProcessor(Normalize([0.5] * 3, [0.25] * 3)))
    with pytest.raises(ConfigurationError, match="pads by the image's size: give input_size, or a pre-processor"):
        model.to_onnx("nowhere")
