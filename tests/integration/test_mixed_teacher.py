"""MixedTeacher through anomalib's Engine: training, restoring, exporting, and what users do wrong."""

import copy
import socket
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from anomalib.data import Folder
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning import seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Normalize

from anomalib_mixedteacher import MixedTeacher
from anomalib_mixedteacher.benchmark import parity
from anomalib_mixedteacher.errors import ConfigurationError, DataError, WeightsError

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def trained(image_folder, build_model, tmp_path_factory) -> tuple[MixedTeacher, Engine, Folder]:
    """A model trained for some epochs, with its engine and data."""
    datamodule = Folder(
        "tiny", root=image_folder, normal_dir="good", normal_test_dir="good_test", abnormal_dir="bad", mask_dir="mask",
        train_batch_size=4, num_workers=0, seed=0,
    )  # fmt: skip
    model = build_model()
    engine = Engine(
        max_epochs=10, default_root_dir=tmp_path_factory.mktemp("trained"), accelerator="cpu", enable_progress_bar=False
    )
    engine.fit(model=model, datamodule=datamodule)
    return model, engine, datamodule


@pytest.fixture
def photo(image_folder) -> torch.Tensor:
    """One image as anomalib reads it, larger than the model's input: (1, 3, 96, 96)."""
    from anomalib.data.utils import read_image

    return read_image(image_folder / "bad" / "0.png", as_tensor=True).unsqueeze(0)


def relative(result, expected) -> float:
    result, expected = np.asarray(result, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def without_post_processing(model: MixedTeacher) -> MixedTeacher:
    """A copy that gives raw maps and scores: anomalib's normalisation would clamp differences away."""
    raw = copy.deepcopy(model)
    raw.post_processor = None
    return raw.eval()


def test_trains_and_finds_the_defects(trained):
    model, engine, datamodule = trained
    (metrics,) = engine.test(model=model, datamodule=datamodule, verbose=False)
    assert metrics["image_AUROC"] > 0.9
    assert metrics["pixel_AUROC"] > 0.8


def test_random_teachers_are_normalised_on_the_data_and_warn(datamodule, engine, build_model, caplog):
    model = build_model(teacher_weights="random")
    engine.fit(model=model, datamodule=datamodule)
    assert "Teacher resnet18 has random weights (seed 0): fit for tests and ablations" in caplog.text
    assert model.model.teachers["resnet"].extractor.net.bn1.running_var.std() > 0


def test_restored_without_network_gives_the_same(trained, photo, monkeypatch):
    model, engine, _ = trained

    def refuse(*args, **kwargs):
        raise OSError("network is down")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    checkpoint = torch.load(engine.best_model_path, weights_only=False)
    assert checkpoint["anomalib_mixedteacher"]["teacher_weights"] == model.teacher_weights
    assert set(checkpoint["anomalib_mixedteacher"]["fingerprints"]) == {"resnet18", "efficientnet_b0"}
    checkpoint["hyper_parameters"]["teacher_weights"] = "imagenet"  # not to be fetched, whatever it says
    path = Path(engine.best_model_path).with_name("offline.ckpt")
    torch.save(checkpoint, path)
    restored = MixedTeacher.load_from_checkpoint(path).eval()
    with torch.no_grad():
        expected, result = model.eval()(photo), restored(photo)
    assert torch.equal(result.anomaly_map, expected.anomaly_map)
    assert torch.equal(result.pred_score, expected.pred_score)


def test_checkpoint_brings_its_fusion_unless_overridden(trained):
    path = trained[1].best_model_path
    for fusion in ("product", "sum"):
        model = MixedTeacher.load_from_checkpoint(path, fusion=fusion)
        assert model.model.anomaly_map_generator.fusion == fusion
    model = MixedTeacher(fusion="product", resnet_layers=[2])
    checkpoint = torch.load(path, weights_only=False)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    assert model.model.anomaly_map_generator.fusion == model.hparams["fusion"] == "standardized_sum"


@pytest.mark.parametrize(("version", "fusion", "warned"), [
    ("0.2.0", "standardized_sum", 1), ("0.2.0", "product", 0), ("0.3.0", "standardized_sum", 1),
    ("0.4.0", "standardized_sum", 0),
])  # fmt: skip
def test_thresholds_of_another_scale_are_told(trained, caplog, version, fusion, warned):
    checkpoint = torch.load(trained[1].best_model_path, weights_only=False)
    checkpoint["anomalib_mixedteacher"]["version"] = version
    checkpoint["hyper_parameters"]["fusion"] = fusion
    MixedTeacher(fusion=fusion).on_load_checkpoint(checkpoint)
    assert caplog.text.count("its thresholds do not fit until 'mixedteacher calibrate'") == warned


def test_resumed_model_records_the_teachers_it_has(trained, build_model):
    checkpoint = torch.load(trained[1].best_model_path, weights_only=False)
    model = build_model(teacher_weights="imagenet")
    model.on_load_checkpoint(checkpoint)
    assert model.teacher_weights == model.hparams["teacher_weights"] == trained[0].teacher_weights
    del checkpoint["anomalib_mixedteacher"]
    with pytest.raises(ConfigurationError, match="not a MixedTeacher's: give one that MixedTeacher trained"):
        model.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(("precision", "remedy"), [
    ("bf16-true", "use 16-mixed or bf16-mixed"), ("64-true", "use 32-true"),
])  # fmt: skip
def test_pure_half_and_double_precision_are_refused(tiny_model, datamodule, tmp_path, precision, remedy):
    engine = Engine(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", precision=precision)
    with pytest.raises(ConfigurationError, match=remedy):
        engine.fit(model=tiny_model, datamodule=datamodule)


def test_small_image_to_predict(trained, tmp_path):
    Image.new("RGB", (31, 64)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small.png is 31 x 64 pixels, smaller than 32"):
        trained[1].predict(model=trained[0], data_path=tmp_path / "small.png")


def test_frames_in_memory_may_have_any_name(trained, photo):
    """A batch whose images are not files is predicted by Lightning as it is."""
    from anomalib.data import ImageBatch

    image = photo.float().expand(2, -1, -1, -1)
    model = trained[0].eval()
    named = model.predict_step(ImageBatch(image=image, image_path=["camera 1, frame 7", "frame 8"]), 0)
    plain = model.predict_step(ImageBatch(image=image), 0)
    torch.testing.assert_close(named.anomaly_map, plain.anomaly_map, rtol=0, atol=0)


@pytest.mark.parametrize("input_size", [None, (96, 96)])
def test_onnx_and_openvino_agree_with_torch(trained, photo, tmp_path, input_size):
    model = without_post_processing(trained[0])
    onnx = model.to_onnx(tmp_path, input_size=input_size)
    session = onnxruntime.InferenceSession(str(onnx))
    xml = model.to_openvino(tmp_path, input_size=input_size)
    compiled = openvino.Core().compile_model(str(xml), "CPU", F32)
    batches = [photo, torch.cat([photo, photo.flip(-1), photo.flip(-2)])]
    if input_size is None:  # any size goes: the graph resizes as the training data was resized
        batches.append(torch.nn.functional.interpolate(photo, (64, 128)))
    for images in batches:
        with torch.no_grad():
            expected = model(images)
            via_transform = model.model(model.pre_processor.transform(images))
        assert relative(expected.anomaly_map, via_transform.anomaly_map) < 1e-4
        names = [output.name for output in session.get_outputs()]
        for outputs in (
            dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True)),
            {next(iter(key.get_names())): value for key, value in compiled(images.numpy()).items()},
        ):
            assert relative(outputs["anomaly_map"], expected.anomaly_map) < 1e-4
            assert relative(outputs["pred_score"], expected.pred_score) < 1e-4
    # what OpenVINO does by default where the processor has it: less exact, but a map all the same
    rough = openvino.Core().compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    assert all(np.isfinite(value).all() for value in rough(photo.numpy()).values())


def test_parity_command(trained, image_folder, monkeypatch, capsys):
    arguments = [trained[1].best_model_path, *map(str, sorted((image_folder / "bad").iterdir())[:2])]
    monkeypatch.setattr(sys, "argv", ["parity", *arguments])
    parity.main()
    lines = capsys.readouterr().out.splitlines()
    values = {line[:35].strip(): float(line[35:]) for line in lines if line.startswith("  ") and "e-" in line}
    assert values["OpenVINO, float32"] < 1e-4
    assert values["ONNX, onnxruntime"] < 1e-4


@pytest.mark.parametrize("fusion", ["product", "sum", "normalized_product"])
def test_graph_without_a_resize_takes_several_sizes(trained, tmp_path, fusion):
    model = without_post_processing(trained[0])
    model.model.anomaly_map_generator.fusion = fusion
    model.pre_processor = PreProcessor(Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]))
    xml = model.to_openvino(tmp_path)
    compiled = openvino.Core().compile_model(str(xml), "CPU", F32)
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 64, 64), (2, 96, 128), (1, 160, 64)):
        noise = torch.rand(shape[0], 3, 8, 8, generator=generator)
        images = torch.nn.functional.interpolate(noise, shape[1:], mode="bilinear")
        with torch.no_grad():
            expected = model(images)
        outputs = {next(iter(key.get_names())): value for key, value in compiled(images.numpy()).items()}
        assert relative(outputs["anomaly_map"], expected.anomaly_map) < 1e-4


def test_exported_decisions_equal_engine_predictions(trained, image_folder, tmp_path, monkeypatch):
    """Files through the exported model with anomalib's inferencer, against the same files through the engine."""
    model, engine, _ = trained
    monkeypatch.chdir(tmp_path)  # the inferencer makes a cache folder in the current one
    inferencer = OpenVINOInferencer(model.to_openvino(tmp_path), device="CPU", config=F32)
    for kind in ("good_test", "bad"):
        predictions = engine.predict(model=model, data_path=image_folder / kind)
        for batch in predictions:
            for path, score, label in zip(batch.image_path, batch.pred_score, batch.pred_label, strict=True):
                result = inferencer.predict(path)
                assert result.pred_score.item() == pytest.approx(score.item(), abs=1e-4)
                if (score - 0.5).abs() > 1e-4:  # the threshold is one image's own score, where rounding decides
                    assert bool(result.pred_label.item()) == bool(label.item())


def test_nothing_unused_is_exported_or_saved(trained, tmp_path):
    import onnx

    model, engine, _ = trained
    parameters = 2 * 3_595_388 + 683_072 + 317_888  # both EfficientNets, the teacher's ResNet, the reduced student
    graph = onnx.load(str(model.to_onnx(tmp_path))).graph
    assert sum(int(np.prod(tensor.dims)) for tensor in graph.initializer) < 1.02 * parameters
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = torch.load(engine.best_model_path, weights_only=False)["state_dict"]
    assert sum(value.numel() for value in state.values()) < 1.02 * parameters


def test_resumed_run_ends_in_the_same_weights(image_folder, build_model, tmp_path):
    def run(folder: str, stop_after: int | None = None, checkpoint: str | None = None) -> Engine:
        datamodule = Folder("tiny", root=image_folder, normal_dir="good", test_split_mode="none", val_split_mode="none")
        datamodule.setup()
        # in order: what is drawn at random on the way is not the model's affair
        loader = DataLoader(datamodule.train_data, batch_size=4, collate_fn=datamodule.train_data.collate_fn)
        model = build_model()
        engine = Engine(
            max_epochs=4,
            default_root_dir=tmp_path / folder,
            accelerator="cpu",
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        if stop_after is not None:
            stop = lambda: setattr(engine.trainer, "should_stop", model.current_epoch + 1 == stop_after)  # noqa: E731
            model.on_train_epoch_end = stop
        engine.fit(model=model, train_dataloaders=loader, ckpt_path=checkpoint)
        return engine

    whole = run("whole")
    first = run("first", stop_after=2)
    assert first.trainer.current_epoch == 2
    second = run("second", checkpoint=first.best_model_path)
    assert second.trainer.global_step == whole.trainer.global_step == 8
    expected, result = (torch.load(e.best_model_path, weights_only=False)["state_dict"] for e in (whole, second))
    for key, value in expected.items():
        if "post_processor" not in key:  # without validation there are no thresholds
            assert torch.equal(result[key], value), key


def test_schedule_follows_the_real_number_of_steps(tiny_model, datamodule, tmp_path):
    engine = Engine(
        max_epochs=3, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, limit_val_batches=0
    )
    rates = []
    tiny_model.on_train_batch_start = lambda *_: rates.append(engine.trainer.optimizers[0].param_groups[0]["lr"])
    engine.fit(model=tiny_model, datamodule=datamodule)
    assert engine.trainer.lr_scheduler_configs[0].scheduler.total_steps == 6  # 3 epochs of 8 images in batches of 4
    assert len(rates) == 6
    assert max(rates) <= 4e-3 * (1 + 1e-9)
    assert max(rates) > 2e-3
    assert rates[0] == pytest.approx(4e-3 / 25)
    assert rates[-1] < 1e-6  # the cycle ends where training ends


def test_default_number_of_epochs_is_the_models_own(tiny_model, datamodule, tmp_path):
    tiny_model.max_epochs = 2
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, limit_val_batches=0)
    engine.fit(model=tiny_model, datamodule=datamodule)
    assert engine.trainer.current_epoch == 2


def test_early_stopping_watches_good_validation_images(image_folder, build_model, tmp_path):
    datamodule = Folder("tiny", root=image_folder, normal_dir="good", train_batch_size=4, num_workers=0, seed=0,
                        test_split_mode="none", val_split_mode="from_train", val_split_ratio=0.25)  # fmt: skip
    model = build_model(early_stopping_patience=1, learning_rate=1e-13)
    engine = Engine(max_epochs=9, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    model.on_train_epoch_start = lambda: model.model.students.eval()  # nothing learns: the loss cannot fall
    engine.fit(model=model, datamodule=datamodule)
    assert engine.trainer.current_epoch < 9
    assert "val_loss" in engine.trainer.callback_metrics


def test_teachers_see_each_image_once(build_model, datamodule, tmp_path):
    losses = {}
    for cache in (0, 100):
        model = build_model(feature_cache=cache)
        seen = []
        model.model.teachers["resnet"].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        engine = Engine(max_epochs=3, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
        seed_everything(0)
        engine.fit(model=model, datamodule=datamodule)
        validation = len(datamodule.val_data)
        # without a cache: each epoch, and 8 good images for their statistics before each validation
        assert sum(seen) == (8 + validation if cache else 3 * (8 + 8 + validation))
        losses[cache] = engine.trainer.callback_metrics["train_loss_epoch"].item()
    assert losses[100] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(("arguments", "counts"), [
    ({"max_epochs": 2}, [16, 64]),
    ({"max_epochs": 5, "max_steps": 1}, [64]),
    ({"max_epochs": 2, "callbacks": [EarlyStopping("val_loss", patience=1)]}, [64, 64]),
    ({"max_epochs": 2, "callbacks": [EarlyStopping("val_loss", patience=2)]}, [16, 64]),
    ({"max_epochs": 2, "callbacks": [EarlyStopping("val_loss", stopping_threshold=0.0)]}, [64, 64]),
    ({"max_epochs": 2, "limit_val_batches": 0}, [16, 64]),
])  # fmt: skip
def test_last_statistics_are_of_more_images(tiny_model, datamodule, tmp_path, monkeypatch, arguments, counts):
    found = []
    good_features = MixedTeacher.good_features
    monkeypatch.setattr(
        MixedTeacher, "good_features", lambda self, count: found.append(count) or good_features(self, count)
    )
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, **arguments)
    engine.fit(model=tiny_model, datamodule=datamodule)
    assert found == counts


def test_mixed_precision_gives_no_nan(tiny_model, datamodule, tmp_path):
    # 16-mixed runs on GPUs only; the float16 distance is tested in test_distance.py
    engine = Engine(
        max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", precision="bf16-mixed", enable_progress_bar=False
    )
    engine.fit(model=tiny_model, datamodule=datamodule)
    assert all(value.isfinite() for key, value in engine.trainer.callback_metrics.items() if "loss" in key)
    assert all(p.isfinite().all() for p in tiny_model.parameters())


def broken_folder(root: Path, last: bytes | Image.Image | None, count: int = 3) -> Folder:
    (root / "good").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / "good" / f"{index}.png")
    if isinstance(last, bytes):
        (root / "good" / "bad.png").write_bytes(last)
    elif last is not None:
        last.save(root / "good" / "bad.png")
    return Folder(
        "broken",
        root=root,
        normal_dir="good",
        num_workers=0,
        train_batch_size=4,
        test_split_mode="none",
        val_split_mode="none",
    )


@pytest.mark.parametrize(
    ("last", "count", "message"),
    [
        (b"\x89PNG\r\n\x1a\n but no more", 3, r"Cannot read the image .*bad.png .*: replace the file or remove it"),
        (Image.new("RGB", (64, 20)), 3, r"bad.png is 64 x 20 pixels, smaller than 32 pixels on a side: remove it"),
        (Image.new("RGB", (64, 64), (9, 80, 7)), 3, r"bad.png has the same value in all its pixels, .* replace it"),
        (Image.fromarray(np.full((64, 64), 700, np.uint16)), 3, r"bad.png has the same value in all its pixels"),
        (None, 1, r"1 training image is too few .* give at least 2, better 50"),
    ],
)
def test_bad_training_images(tiny_model, tmp_path, last, count, message):
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", limit_val_batches=0, enable_progress_bar=False)
    with pytest.raises(DataError, match=message):
        engine.fit(model=tiny_model, datamodule=broken_folder(tmp_path / "data", last, count))


def test_grey_rgba_and_sixteen_bit_images_are_handled(tmp_path):
    """A grey, an RGBA and a 16-bit copy of one picture get the RGB picture's score."""
    from anomalib.data.utils import read_image

    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (64, 64), dtype=np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    pictures = {
        "rgb": Image.fromarray(rgb),
        "grey": Image.fromarray(grey),
        "rgba": Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])),
        "sixteen": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    sixteen = (grey.astype(np.uint16) * 257).astype(">u2")
    (tmp_path / "sixteen.pgm").write_bytes(b"P5\n64 64\n65535\n" + sixteen.tobytes())
    from anomalib.data import PredictDataset

    expected = read_image(tmp_path / "rgb.png", as_tensor=True)
    for item in PredictDataset(tmp_path):
        torch.testing.assert_close(item.image, expected, rtol=0, atol=1e-6, msg=item.image_path)


def test_unreachable_hub_stops_before_training(datamodule, engine, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = MixedTeacher(pre_processor=MixedTeacher.configure_pre_processor((64, 64)))
    with pytest.raises(WeightsError, match="connect once .*path.*teacher_weights='texture'"):
        engine.fit(model=model, datamodule=datamodule)
    assert engine.trainer.global_step == 0


def test_texture_teachers_train_and_predict_without_network(datamodule, engine, build_model, monkeypatch, image_folder):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    model = build_model(teacher_weights="texture")
    engine.fit(model=model, datamodule=datamodule)
    (prediction,) = engine.predict(model=model, data_path=image_folder / "bad" / "0.png")
    assert prediction.anomaly_map.isfinite().all()
    record = torch.load(engine.best_model_path, weights_only=True)["anomalib_mixedteacher"]
    assert record["teacher_weights"] == "texture"


def test_endless_training_and_changed_schedule(tiny_model, build_model, datamodule, tmp_path, trained):
    engine = Engine(max_epochs=-1, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(ConfigurationError, match=r"give trainer\.max_epochs or trainer\.max_steps"):
        engine.fit(model=tiny_model, datamodule=datamodule)
    longer = Engine(max_epochs=20, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    model = build_model()
    with pytest.raises(ConfigurationError, match="schedule has 20 steps, this run 40: resume with the same"):
        longer.fit(model=model, datamodule=datamodule, ckpt_path=trained[1].best_model_path)
