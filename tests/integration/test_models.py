"""Every model of the package through anomalib's Engine, in the pattern of anomalib's own model tests."""

import copy
import socket
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import get_model, list_models
from PIL import Image
from torch import nn

from anomalib_mixedteacher import plugin
from anomalib_mixedteacher.edge import EdgeDetector
from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError, WeightsError
from anomalib_mixedteacher.models.restore import load_model
from anomalib_mixedteacher.post_processing.checkpoint import calibrate_checkpoint

SIZE = (64, 64)
# A gradient jumps where rounding turns a ReLU or a pooling's maximum: in float32 torch itself differs from float64 by
# 2e-3 of the map's maximum. Scores and the other models' maps are continuous.
MAP_TOLERANCE = {"Mkd": 2e-2}
EPOCHS = {"Mkd": 20}  # its learning rate is constant, and lower than the others' peak
ARGUMENTS = {"Mkd": {"teacher_weights": "random", "sigma": 2.0}}


def build(name: str, teacher_folder: Path, **arguments):
    torch.manual_seed(0)
    cls = plugin.public(name)
    defaults = {"teacher_weights": str(teacher_folder), "pre_processor": cls.configure_pre_processor(SIZE)}
    return cls(**{**defaults, **ARGUMENTS.get(name, {}), **arguments})


@pytest.fixture(scope="module", params=plugin.MODELS)
def trained(request, image_folder, teacher_folder, tmp_path_factory):
    """Name, model, engine and data of a model trained for some epochs."""
    datamodule = Folder(
        "tiny", root=image_folder, normal_dir="good", normal_test_dir="good_test", abnormal_dir="bad", mask_dir="mask",
        train_batch_size=4, num_workers=0, seed=0,
    )  # fmt: skip
    model = build(request.param, teacher_folder)
    engine = Engine(
        max_epochs=EPOCHS.get(request.param, 10),
        default_root_dir=tmp_path_factory.mktemp("run"),
        accelerator="cpu",
        enable_progress_bar=False,
    )
    engine.train(model=model, datamodule=datamodule)
    return request.param, model, engine, datamodule


@pytest.fixture(scope="module")
def photo_file(tmp_path_factory) -> Path:
    """A defective image, larger than the models' input, without flat areas.

    There rounding decides which pixel of a pooling window is the largest, and with it where Mkd's gradient goes.
    """
    rng = np.random.default_rng(7)
    stripes = 120 + 30 * np.sin(np.linspace(0, 12 * np.pi, 96))[:, None]
    image = np.repeat((stripes + rng.normal(0, 10, (96, 96)))[..., None], 3, axis=-1)
    image[24:48, 24:48] += 60
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def photo(photo_file) -> torch.Tensor:
    """The image as anomalib reads it: (1, 3, 96, 96)."""
    return read_image(photo_file, as_tensor=True).unsqueeze(0)


def relative(result, expected) -> float:
    result, expected = np.asarray(result, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.abs(result - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", plugin.MODELS)
def test_is_known_to_anomalib(name):
    snake = {"MixedTeacher": "mixed_teacher"}.get(name, name.lower())
    assert snake in list_models()
    assert type(get_model(snake)).__name__ == type(get_model({"class_path": name})).__name__ == name


def test_finds_the_defects(trained):
    _, model, engine, datamodule = trained
    (metrics,) = engine.test(model=model, datamodule=datamodule, verbose=False)
    assert metrics["image_AUROC"] > 0.9
    assert metrics["pixel_AUROC"] > 0.7


def test_restores_without_network_or_arguments(trained, image_folder, monkeypatch):
    name, model, engine, datamodule = trained
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    fresh = plugin.public(name)()  # the command line builds it before it reads the checkpoint
    (metrics,) = engine.validate(model=fresh, datamodule=datamodule, ckpt_path=engine.best_model_path, verbose=False)
    assert metrics["val_loss"] > 0
    assert fresh.model_arguments == model.model_arguments
    expected = engine.predict(model=model, data_path=image_folder / "bad")
    for batch, other in zip(
        engine.predict(model=fresh, data_path=image_folder / "bad", ckpt_path=engine.best_model_path),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(batch.pred_score, other.pred_score)
        torch.testing.assert_close(batch.anomaly_map, other.anomaly_map)


def test_exports_from_a_checkpoint(trained, photo, photo_file, teacher_folder, tmp_path):
    """Torch, ONNX and OpenVINO give the checkpoint's maps and decisions."""
    name, _, engine, _ = trained
    tolerance = MAP_TOLERANCE.get(name, 1e-3)
    model = plugin.public(name).load_from_checkpoint(engine.best_model_path, map_location="cpu").eval()
    with torch.no_grad():
        expected = model(photo)
    root = tmp_path / "exports"
    fresh = build(name, teacher_folder)
    torch_path = engine.export(
        model=fresh, export_type=ExportType.TORCH, export_root=root, ckpt_path=engine.best_model_path
    )
    loaded = torch.load(torch_path, weights_only=False)["model"].eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(photo).anomaly_map, expected.anomaly_map)

    onnx = engine.export(model=fresh, export_type=ExportType.ONNX, export_root=root, ckpt_path=engine.best_model_path)
    session = onnxruntime.InferenceSession(str(onnx))
    names = [output.name for output in session.get_outputs()]
    batch = torch.cat([photo, photo.flip(-1), photo.flip(-2)])
    with torch.no_grad():
        several = model(batch)
    for images, wanted in ((photo, expected), (batch, several)):
        found = dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
        assert np.abs(found["anomaly_map"] - wanted.anomaly_map.numpy()).max() < tolerance
        assert np.abs(found["pred_score"] - wanted.pred_score.numpy()).max() < 1e-3

    xml = engine.export(
        model=fresh, export_type=ExportType.OPENVINO, export_root=root, ckpt_path=engine.best_model_path
    )
    result = EdgeDetector(xml).predict(photo_file)
    assert result.score == pytest.approx(expected.pred_score.item(), abs=1e-3)
    assert np.abs(result.anomaly_map - expected.anomaly_map[0, 0].numpy()).max() < tolerance


def test_raw_maps_are_exported_exactly(trained, photo, tmp_path):
    """Without the post-processor, whose normalisation clamps differences away."""
    model = copy.deepcopy(trained[1]).eval()
    model.post_processor = None
    compiled = openvino.Core().compile_model(
        str(model.to_openvino(tmp_path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    batch = torch.cat([photo, photo.flip(-1), 0.5 * photo + 0.2])
    with torch.no_grad():
        expected = model(batch)
    found = {next(iter(key.get_names())): value for key, value in compiled(batch.numpy()).items()}
    assert relative(found["anomaly_map"], expected.anomaly_map) < MAP_TOLERANCE.get(trained[0], 1e-4)
    assert relative(found["pred_score"], expected.pred_score) < 1e-4


def test_a_batch_gives_what_its_images_give(trained, photo):
    model = copy.deepcopy(trained[1]).eval()
    model.post_processor = None
    batch = torch.cat([photo, photo.flip(-1), 0.5 * photo])
    with torch.no_grad():
        together, alone = model(batch), [model(image[None]) for image in batch]
    assert relative(together.anomaly_map, torch.cat([one.anomaly_map for one in alone])) < MAP_TOLERANCE.get(
        trained[0], 1e-4
    )
    assert relative(together.pred_score, torch.cat([one.pred_score for one in alone])) < 1e-5


def test_a_flat_image_is_judged_without_nan(trained):
    with torch.no_grad():
        prediction = copy.deepcopy(trained[1]).eval()(torch.full((2, 3, 96, 96), 0.3))
    assert prediction.anomaly_map.isfinite().all()
    assert prediction.pred_score.isfinite().all()


def test_another_models_checkpoint_is_refused(trained):
    name, _, engine, _ = trained
    other = next(other for other in plugin.MODELS if other != name)
    with pytest.raises(ConfigurationError, match=f"not a {other}'s: give one that {other} trained"):
        plugin.public(other).load_from_checkpoint(engine.best_model_path)


@pytest.mark.parametrize("name", plugin.MODELS)
def test_untrained_models_refuse_to_judge(name, teacher_folder):
    with pytest.raises(TeacherNotLoadedError, match="has no weights yet: train the model first"):
        build(name, teacher_folder).eval()(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", plugin.MODELS)
def test_unreachable_weights_stop_before_training(name, teacher_folder, datamodule, engine, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # offered only where there is a texture teacher of that backbone, as deep as it is used
    remedy = (
        r"teacher_weights='texture', which needs no network\.$" if name == "MixedTeacher" else r"downloaded files\.$"
    )
    with pytest.raises(WeightsError, match=f"connect once .*path.*{remedy}"):
        engine.fit(model=build(name, teacher_folder, teacher_weights="imagenet"), datamodule=datamodule)
    assert engine.trainer.global_step == 0


def test_smooth_grad_is_exported_with_its_noise(teacher_folder, photo, tmp_path):
    torch.manual_seed(0)
    model = build("Mkd", teacher_folder, localization="smooth_grad", smooth_samples=3, direction_weight=1.0).eval()
    model.model.load_teachers("random")
    model.post_processor = None
    onnx = model.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(str(onnx))
    (found,) = session.run(["anomaly_map"], {"input": photo.numpy()})
    with torch.no_grad():
        assert relative(found, model(photo).anomaly_map) < MAP_TOLERANCE["Mkd"]
    model.pre_processor = None
    with pytest.raises(ConfigurationError, match="smooth_grad needs a graph of fixed size: give input_size"):
        model.to_onnx(tmp_path)


def test_thresholds_are_set_from_good_images(trained, image_folder, tmp_path):
    path = tmp_path / "calibrated.ckpt"
    calibrate_checkpoint(Path(trained[2].best_model_path), image_folder / "good", path, alarm_rate=0.25)
    model = load_model(path).eval()
    assert type(model).__name__ == trained[0]
    images = [read_image(file, as_tensor=True) for file in sorted((image_folder / "bad").iterdir())]
    with torch.no_grad():
        assert model(torch.stack(images)).pred_label.float().mean() >= 0.5


def test_a_checkpoint_brings_its_loss_too(teacher_folder):
    other, model = build("Msfd", teacher_folder, cosine_weight=1.0), build("Msfd", teacher_folder)
    checkpoint = {"state_dict": other.state_dict(), "hyper_parameters": dict(other.hparams)}
    other.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    assert model.loss.cosine_weight == model.model.anomaly_map_generator.cosine_weight == 1.0


def test_a_derived_class_reads_its_base_class_checkpoints(trained):
    name, model, engine, _ = trained
    derived = type("Derived", (plugin.public(name),), {})
    restored = derived.load_from_checkpoint(engine.best_model_path, map_location="cpu")
    assert restored.model_arguments == model.model_arguments
    checkpoint = {"state_dict": {}}  # as Lightning gives it
    restored.on_save_checkpoint(checkpoint)
    assert checkpoint["anomalib_mixedteacher"]["model"] == name


@pytest.mark.parametrize("arguments", [{}, {"freeze_bn_after_first_epoch": False}], ids=["default", "learning"])
@pytest.mark.parametrize("name", ["MixedTeacher", "Msfd"])
def test_batch_normalisation_is_frozen_after_the_first_epoch(teacher_folder, datamodule, engine, name, arguments):
    model = build(name, teacher_folder, **arguments)
    layer = next(layer for layer in model.model.students.modules() if isinstance(layer, nn.BatchNorm2d))
    means = []
    model.on_train_epoch_end = lambda: means.append(layer.running_mean.clone())
    engine.fit(model=model, datamodule=datamodule)
    assert means[0].any()
    assert [torch.equal(mean, means[0]) for mean in means] == [True] + [not arguments] * (len(means) - 1)


def test_a_second_training_learns_batch_normalisation_again(teacher_folder, datamodule, tmp_path):
    model = build("Msfd", teacher_folder)
    layer = next(layer for layer in model.model.students.modules() if isinstance(layer, nn.BatchNorm2d))
    means = []
    for _ in range(2):
        engine = Engine(max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
        engine.fit(model=model, datamodule=datamodule)
        means.append(layer.running_mean.clone())
    assert not torch.equal(*means)


@pytest.mark.parametrize("name", plugin.MODELS)
def test_trains_and_judges_in_mixed_precision(name, teacher_folder, image_folder, datamodule, tmp_path):
    model = build(name, teacher_folder)
    predictions = {}
    for precision in ("bf16-mixed", "32-true"):
        engine = Engine(
            max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", precision=precision, enable_progress_bar=False
        )
        if precision == "bf16-mixed":
            engine.fit(model=model, datamodule=datamodule)
        (batch,) = engine.predict(model=model, data_path=next(image_folder.glob("bad/*")))
        predictions[precision] = batch.anomaly_map
    half, full = predictions.values()
    assert half.dtype == full.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0, atol=0.2)  # of a map that is scaled to [0, 1]


def test_a_negative_cache_is_refused(teacher_folder):
    with pytest.raises(ConfigurationError, match="feature_cache is -1: give MiB of memory, or 0"):
        build("Msfd", teacher_folder, feature_cache=-1)


def test_features_are_released_when_training_fails(teacher_folder, datamodule, engine, monkeypatch):
    model = build("Msfd", teacher_folder)

    def fail(*_):
        assert model._cached_teachers is not None
        raise RuntimeError("no more")

    monkeypatch.setattr(model, "on_train_epoch_end", fail)
    with pytest.raises(RuntimeError, match="no more"):
        engine.fit(model=model, datamodule=datamodule)
    assert model._cached_teachers is None
