"""Every model of the package through anomalib's Engine, in the pattern of anomalib's own model tests."""

import socket
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import ExportType
from anomalib.models import AnomalibModule, get_model, list_models
from jsonargparse import ArgumentParser
from PIL import Image

from anomalib_mixedteacher import plugin
from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError, WeightsError

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
# A gradient jumps where rounding turns a ReLU or a pooling's maximum: in float32 torch itself differs from float64 by
# 2e-3 of the map's maximum. Scores and the other models' maps are continuous.
TOLERANCE = {"Mkd": 2e-2}
VARIANTS = [*((name, {}) for name in plugin.MODELS), ("MixedTeacher", {"architecture": "paper"})]


@pytest.fixture(params=plugin.MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory) -> Path:
    """Three defective images, larger than the models' input, without flat areas.

    There rounding decides which pixel of a pooling window is the largest, and with it where Mkd's gradient goes.
    """
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(7)
    stripes = 120 + 30 * np.sin(np.linspace(0, 12 * np.pi, 96))[:, None]
    for index, height in enumerate((60, 80, 20)):
        image = np.repeat((stripes + rng.normal(0, 10, (96, 96)))[..., None], 3, axis=-1)
        image[24:48, 24:48] += height
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def photos(photo_folder) -> torch.Tensor:
    """The images as anomalib reads them: (3, 3, 96, 96)."""
    return torch.stack([read_image(path, as_tensor=True) for path in sorted(photo_folder.iterdir())])


def assert_same(found, expected, tolerance: float) -> None:
    """Predictions on the post-processor's scale, on which 0.5 is the threshold."""
    for field, limit in (("anomaly_map", tolerance), ("pred_score", 1e-4)):
        wanted = getattr(expected, field).numpy()
        assert np.abs(np.asarray(found[field]).reshape(wanted.shape) - wanted).max() < limit, field
    sure = ((expected.pred_score - 0.5).abs() > 1e-4).flatten().numpy()
    assert np.array_equal(np.ravel(found["pred_label"])[sure], expected.pred_label.flatten().numpy()[sure])


def test_is_known_by_its_name_and_class_path(name):
    snake = {"MixedTeacher": "mixed_teacher"}.get(name, name.lower())
    assert snake in list_models()
    paths = [name, f"anomalib_mixedteacher.{name}", f"anomalib_mixedteacher.models.{name}", f"anomalib.models.{name}"]
    models = [get_model(snake), *(get_model({"class_path": path}) for path in paths)]
    assert {type(model) for model in models} == {plugin.public(name)}
    parser = ArgumentParser(exit_on_error=False)  # as anomalib's command line finds a model
    parser.add_subclass_arguments(AnomalibModule, "model")
    assert parser.parse_args([f"--model={name}"]).model.class_path == f"anomalib_mixedteacher.{name}"


def test_fit_test_validate_predict(name, trained, make_data, make_engine, photo_folder, monkeypatch):
    """From the checkpoint, by a model that was built before it was read, without network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    run, cls = trained(name), plugin.public(name)
    restored = cls.load_from_checkpoint(run.checkpoint).eval()
    (metrics,) = make_engine().test(cls(), datamodule=make_data(), ckpt_path=run.checkpoint, verbose=False)
    assert metrics["image_AUROC"] > 0.9
    assert metrics["pixel_AUROC"] > 0.7
    (metrics,) = make_engine().validate(cls(), datamodule=make_data(), ckpt_path=run.checkpoint, verbose=False)
    assert metrics["val_loss"] > 0
    for batch in make_engine().predict(cls(), data_path=photo_folder, ckpt_path=run.checkpoint):
        images = torch.stack([read_image(path, as_tensor=True) for path in batch.image_path])
        with torch.no_grad():
            expected = run.model(images)
            assert_same(restored(images)._asdict(), expected, TOLERANCE.get(name, 1e-4))
        assert_same(vars(batch), expected, TOLERANCE.get(name, 1e-4))  # resized by the data set, not by the model


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=str)
def test_eager_torch_onnx_and_openvino_agree(name, arguments, trained, exported, make_engine, photos, tmp_path):
    """One image or several, and of any size: the graph resizes as the data were resized."""
    checkpoint, cls = trained(name, **arguments).checkpoint, plugin.public(name)
    model = cls.load_from_checkpoint(checkpoint).eval()
    saved = {"model": model, "export_root": tmp_path, "ckpt_path": checkpoint}
    loaded = torch.load(make_engine().export(export_type=ExportType.TORCH, **saved), weights_only=False)["model"]
    session = onnxruntime.InferenceSession(str(make_engine().export(export_type=ExportType.ONNX, **saved)))
    compiled = openvino.Core().compile_model(str(exported(name, **arguments)), "CPU", F32)
    tolerance = TOLERANCE.get(name, 1e-4)
    with torch.no_grad():
        together = model(photos)
        assert (together.anomaly_map < 1).float().mean() > 0.9  # not clamped: differences would show
        for images in (photos, photos[:1], photos[1:, :, :64, :80]):
            expected = model(images)
            torch.testing.assert_close(loaded.eval()(images).anomaly_map, expected.anomaly_map)
            names = [output.name for output in session.get_outputs()]
            onnx = dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
            assert_same(onnx, expected, tolerance)
            assert_same(compiled(images.numpy()), expected, tolerance)
        alone = [model(photo[None]) for photo in photos]
    fields = ("anomaly_map", "pred_score", "pred_label")
    found = {field: torch.cat([getattr(one, field) for one in alone]) for field in fields}
    assert_same(found, together, tolerance)


def test_openvino_in_half_precision_gives_finite_values(name, exported, photos):
    rough = openvino.Core().compile_model(str(exported(name)), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    flat = np.full((1, 3, 96, 96), 0.3, np.float32)
    for images in (photos.numpy(), flat):
        assert all(np.isfinite(value).all() for value in rough(images).values())


def test_another_models_checkpoint_is_refused(name, trained):
    for other in set(plugin.MODELS) - {name}:
        with pytest.raises(ConfigurationError, match=f"not a {other}'s: give one that {other} trained"):
            plugin.public(other).load_from_checkpoint(trained(name).checkpoint)


def test_without_weights_nothing_is_judged_or_trained(
    name, build_model, datamodule, make_engine, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    engine, model = make_engine(max_epochs=1), build_model(name, teacher_weights="imagenet")
    with pytest.raises(WeightsError, match="neither in the cache nor reachable .* connect once"):
        engine.fit(model=model, datamodule=datamodule)
    assert engine.trainer.global_step == 0
    with pytest.raises(TeacherNotLoadedError, match="has no weights yet: train the model first"):
        model.eval()(torch.rand(1, 3, 64, 64))
