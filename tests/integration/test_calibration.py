"""Thresholds from good images alone, through anomalib's Engine: training, checkpoint, export, other models."""

import json
import shutil

import onnxruntime
import pytest
import torch
from anomalib.data import Folder
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.models import Stfpm
from anomalib.pre_processing import PreProcessor
from anomalib_mixedteacher.benchmark.peers import build_peer, no_download

from anomalib_mixedteacher import MixedTeacher, NormalCalibratedPostProcessor
from anomalib_mixedteacher.cli import main
from anomalib_mixedteacher.decoding import read_image
from anomalib_mixedteacher.edge import EdgeDetector
from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError, DataError
from anomalib_mixedteacher.export.openvino import export_openvino
from anomalib_mixedteacher.post_processing.checkpoint import calibrate_checkpoint
from mixedteacher_edge.conformal import conformal_threshold


def good_only(image_folder, **arguments):
    return Folder(
        "tiny", root=image_folder, normal_dir="good_test", test_split_mode="none", val_split_mode="none",
        train_batch_size=2, num_workers=0, seed=0, **arguments,
    )  # fmt: skip


def raw_scores(model, dataset):
    images = torch.stack([dataset[index].image for index in range(len(dataset))])
    model.eval()
    with torch.no_grad():
        # not the pre-processor's forward, in which anomalib's own resizes without antialiasing
        return model.model(model.pre_processor.transform(images)).pred_score.flatten()


@pytest.fixture(scope="module")
def trained(image_folder, build_model, tmp_path_factory):
    """A model trained and calibrated on good images only."""
    datamodule = good_only(image_folder)
    # Settings in which rounding stays small: in units of the spread of four good images it would be 1e-3.
    model = build_model(
        fusion="normalized_product",
        freeze_bn_after_first_epoch=False,
        post_processor=NormalCalibratedPostProcessor(alarm_rate=0.34, held_out=0.34, min_area=4),
    )
    engine = Engine(
        max_epochs=2, default_root_dir=tmp_path_factory.mktemp("calibrated"), accelerator="cpu", logger=False,
        enable_progress_bar=False,
    )  # fmt: skip
    engine.fit(model=model, datamodule=datamodule)
    return model, engine, datamodule


def test_training_images_are_set_aside_and_never_trained_on(trained):
    model, _, datamodule = trained
    train, held = (set(part.samples.image_path) for part in (datamodule.train_data, datamodule.val_data))
    assert len(held) == 2
    assert len(train) == 4
    assert not train & held
    assert model.post_processor.image_scores.numel() == 2


def test_threshold_is_that_of_the_final_model_on_the_held_out_images(trained):
    model, _, datamodule = trained
    scores = raw_scores(model, datamodule.val_data)
    torch.testing.assert_close(model.post_processor.image_scores, scores)
    assert model.post_processor.image_threshold.item() == pytest.approx(conformal_threshold(scores, 0.34), rel=1e-5)


def test_checkpoint_brings_the_thresholds_even_into_a_model_with_anomalibs_post_processor(trained, build_model):
    model, engine, _ = trained
    restored = MixedTeacher.load_from_checkpoint(engine.best_model_path, map_location="cpu")
    assert isinstance(restored.post_processor, NormalCalibratedPostProcessor)
    assert restored.post_processor.alarm_rate == 0.34
    assert torch.equal(restored.post_processor.image_scores, model.post_processor.image_scores)
    assert torch.equal(restored.post_processor.image_threshold, model.post_processor.image_threshold)


def test_openvino_decides_alike(trained, image_folder, tmp_path):
    model, engine, _ = trained
    path = engine.export(model=model, export_type="openvino", export_root=tmp_path, onnx_kwargs={"verbose": False})
    inferencer = OpenVINOInferencer(path, config={"INFERENCE_PRECISION_HINT": "f32"})
    for image in [
        *sorted((image_folder / "bad").glob("*.png"))[:2],
        *sorted((image_folder / "good").glob("*.png"))[:2],
    ]:
        exported = inferencer.predict(image)
        (expected,) = engine.predict(model=model, data_path=image)
        assert exported.pred_score.item() == pytest.approx(expected.pred_score.item(), abs=1e-4)
        if abs(expected.pred_score.item() - 0.5) > 1e-3:
            assert bool(exported.pred_label.item()) == bool(expected.pred_label.item())


def test_defects_in_the_validation_set_are_not_looked_at(datamodule, engine, build_model):
    model = build_model(post_processor=NormalCalibratedPostProcessor(alarm_rate=0.3))
    engine.fit(model=model, datamodule=datamodule)
    good = int((datamodule.val_data.samples.label_index == 0).sum())
    assert 0 < good < len(datamodule.val_data)
    assert model.post_processor.image_scores.numel() == good


def fit(image_folder, tmp_path, model, datamodule=None, ckpt_path=None, **arguments):
    engine = Engine(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, **arguments
    )  # fmt: skip
    engine.fit(model=model, datamodule=datamodule or good_only(image_folder), ckpt_path=ckpt_path)
    return engine


def test_thresholds_of_an_earlier_epoch_are_told(image_folder, tmp_path, build_model, caplog):
    settings = {"alarm_rate": 0.34, "held_out": 0.34, "min_area": 4}
    for epochs, told in ((3, True), (2, False)):
        caplog.clear()
        model = build_model(post_processor=NormalCalibratedPostProcessor(**settings))
        fit(image_folder, tmp_path, model, max_epochs=epochs, check_val_every_n_epoch=2)
        assert ("The last validation was before the training's last step" in caplog.text) == told


def test_settings_that_give_way_to_the_checkpoints_are_told(trained, build_model, caplog):
    path = trained[1].best_model_path
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    model = build_model(fusion="normalized_product", post_processor=NormalCalibratedPostProcessor(alarm_rate=0.1))
    model.on_load_checkpoint(checkpoint)
    assert "Using the checkpoint's alarm_rate=0.34, min_area=4, held_out=0.34;" in caplog.text
    assert model.post_processor.alarm_rate == 0.34
    caplog.clear()
    MixedTeacher.load_from_checkpoint(path, map_location="cpu")
    assert "alarm_rate" not in caplog.text


def test_a_resumed_run_does_not_train_on_what_was_set_aside(trained, image_folder, tmp_path, build_model):
    model = build_model(fusion="normalized_product", freeze_bn_after_first_epoch=False)
    with pytest.raises(ConfigurationError, match="name its post-processor, .*NormalCalibratedPostProcessor, when you"):
        fit(image_folder, tmp_path, model, ckpt_path=trained[1].best_model_path, max_epochs=4, limit_val_batches=0)


def test_images_set_aside_only_where_training_did(image_folder, tmp_path, build_model, caplog):
    """A checkpoint that was calibrated on a folder was trained on all training images."""
    datamodule = Folder(
        "tiny", root=image_folder, normal_dir="good", normal_test_dir="good_test", abnormal_dir="bad",
        val_split_mode="none", train_batch_size=4, num_workers=0, seed=0,
    )  # fmt: skip
    model = build_model()
    engine = fit(image_folder, tmp_path, model, datamodule, max_epochs=1, limit_val_batches=0)
    path = tmp_path / "calibrated.ckpt"
    engine.trainer.save_checkpoint(tmp_path / "model.ckpt")
    calibrate_checkpoint(tmp_path / "model.ckpt", image_folder / "good_test", path, alarm_rate=0.2)
    restored = MixedTeacher.load_from_checkpoint(path, map_location="cpu")
    restored.to_openvino(tmp_path, datamodule=datamodule, onnx_kwargs={"verbose": False})
    assert "are not those that the model was trained on" not in caplog.text


def test_any_anomalib_model(image_folder, tmp_path):
    size = (64, 64)
    model = build_peer(
        "Stfpm",
        layers=["layer1", "layer2"],
        post_processor=NormalCalibratedPostProcessor(alarm_rate=0.34, held_out=0.34),
        pre_processor=Stfpm.configure_pre_processor(size),
    )
    assert isinstance(model.pre_processor, PreProcessor)
    datamodule = good_only(image_folder)
    engine = Engine(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    engine.fit(model=model, datamodule=datamodule)
    torch.testing.assert_close(model.post_processor.image_scores, raw_scores(model, datamodule.val_data))
    path = engine.export(
        model=model, export_type="onnx", export_root=tmp_path, input_size=size,
        onnx_kwargs={"opset_version": 18, "verbose": False},
    )  # fmt: skip
    image = datamodule.val_data[0].image[None, :, :64, :64]
    exported = onnxruntime.InferenceSession(path).run(["pred_score"], {"input": image.numpy()})[0]
    with torch.no_grad():
        expected = model.eval()(image).pred_score
    assert exported.item() == pytest.approx(expected.item(), abs=1e-4)
    # the checkpoint into a model that anomalib builds by itself, and into this package's exporter
    with no_download():
        restored = Stfpm.load_from_checkpoint(engine.trainer.checkpoint_callback.best_model_path, map_location="cpu")
    assert torch.equal(restored.post_processor.image_scores, model.post_processor.image_scores)
    assert restored.post_processor.alarm_rate == 0.34
    with torch.no_grad():
        torch.testing.assert_close(restored.eval()(image).pred_score, expected)
    xml = export_openvino(model, tmp_path / "model.xml", onnx_kwargs={"opset_version": 18, "verbose": False})
    found = EdgeDetector(xml, cache=None).predict(image_folder / "bad" / "0.png")
    photo = model.pre_processor.transform(read_image(image_folder / "bad" / "0.png", as_tensor=True)[None])
    with torch.no_grad():
        score = model.post_processor(model.model(photo)).pred_score.item()
    assert found.score == pytest.approx(score, abs=1e-4)
    assert found.p_value is not None


def test_one_training_image_cannot_be_parted(image_folder, tmp_path, build_model, engine):
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "0.png").write_bytes((image_folder / "good" / "0.png").read_bytes())
    model = build_model(post_processor=NormalCalibratedPostProcessor())
    with pytest.raises(DataError, match="1 training images are too few to set some aside for the threshold"):
        engine.fit(
            model=model,
            datamodule=Folder(
                "one", root=tmp_path, normal_dir="single", test_split_mode="none", val_split_mode="none", num_workers=0
            ),
        )


class TestCommand:
    def run(self, trained, *arguments):
        return main(["calibrate", trained[1].best_model_path, *map(str, arguments)])

    def test_new_thresholds_without_training(self, trained, image_folder, tmp_path, capsys):
        output = tmp_path / "new.ckpt"
        good = image_folder / "good"
        assert self.run(trained, "--good", good, "--alarm-rate=0.25", "--min-area=4", "--output", output) == 0
        printed = capsys.readouterr().out
        assert "8 good images, budget 0.25" in printed
        assert "expected false alarms in 1000 good images: 222.2" in printed  # 2 of 9 places
        assert printed.count("<- threshold") == 1
        report = json.loads((tmp_path / "new-calibration.json").read_text())
        restored = MixedTeacher.load_from_checkpoint(output, map_location="cpu")
        assert restored.post_processor.image_threshold.item() == pytest.approx(report["image_threshold"])
        assert report["image_threshold"] == pytest.approx(sorted(report["scores"])[6])
        # the model itself is the old one
        state = torch.load(trained[1].best_model_path, weights_only=True)["state_dict"]
        kept = torch.load(output, weights_only=True)["state_dict"]
        assert all(torch.equal(kept[key], value) for key, value in state.items() if key.startswith("model."))

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--good={good}", "--alarm-rate=0.01"], "takes 99 good calibration images, but there are 8: add images"),
            (["--good={good}", "--alarm-rate=2"], "An alarm rate of 2.0 makes no sense"),
            (["--good={good}", "--alarm-rate=0.2", "--output={root}/none/new.ckpt"], "There is no folder"),
            (["--good={empty}"], "There are no images in"),
            (["--good={root}/nowhere"], "There is no file or folder"),
            (["--good={good}", "--alarm-rate=0.25", "--min-area=100000"], "give a smaller one, in pixels of the map"),
            (["--good={good}", "--output=/proc/new.ckpt"], "Cannot write /proc/new.ckpt"),
        ],
    )
    def test_errors_are_one_sentence_and_leave_nothing(
        self, trained, image_folder, tmp_path, capsys, arguments, sentence
    ):
        (tmp_path / "empty").mkdir()
        folders = {"good": image_folder / "good", "empty": tmp_path / "empty", "root": tmp_path}
        arguments = [argument.format(**folders) for argument in arguments]
        assert self.run(trained, "--output", tmp_path / "new.ckpt", *arguments) == 1
        error = capsys.readouterr().err.strip()
        assert sentence in error
        assert len(error.splitlines()) == 1
        assert not list(tmp_path.glob("*new*"))

    def test_a_folder_whose_name_is_not_ascii(self, trained, image_folder, tmp_path):
        good = tmp_path / "Prüfbilder"
        shutil.copytree(image_folder / "good", good)
        assert self.run(trained, "--good", good, "--alarm-rate=0.25", "--output", tmp_path / "new.ckpt") == 0
        first = next(good.iterdir())
        assert self.run(trained, "--good", first, "--alarm-rate=0.5", "--output", tmp_path / "one.ckpt") == 0

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed\n...")])
    def test_a_full_disk(self, trained, image_folder, tmp_path, capsys, monkeypatch, error):
        def full(content, path):
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(torch, "save", full)
        good = image_folder / "good"
        assert self.run(trained, "--good", good, "--alarm-rate=0.25", "--output", tmp_path / "new.ckpt") == 1
        assert "free space there, or give another --output." in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_a_missing_or_foreign_checkpoint_is_refused(self, image_folder, tmp_path, capsys):
        good = ["--good", str(image_folder / "good")]
        assert main(["calibrate", str(tmp_path / "nowhere.ckpt"), *good]) == 1
        assert "There is no checkpoint" in capsys.readouterr().err
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        assert main(["calibrate", str(tmp_path / "other.ckpt"), *good]) == 1
        assert "is not a checkpoint of MixedTeacher" in capsys.readouterr().err

    def test_the_new_checkpoint_decides_through_the_engine(self, trained, build_model, image_folder, tmp_path):
        """The trainer takes a model's callbacks before it restores the checkpoint."""
        output = tmp_path / "new.ckpt"
        assert self.run(trained, "--good", image_folder / "good", "--alarm-rate=0.25", "--output", output) == 0
        restored = MixedTeacher.load_from_checkpoint(output, map_location="cpu").eval()
        engine = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
        for path in (image_folder / "bad" / "0.png", image_folder / "good" / "0.png"):
            (found,) = engine.predict(model=build_model(), data_path=path, ckpt_path=output)
            expected = restored(read_image(path, as_tensor=True)[None])
            torch.testing.assert_close(found.pred_score.flatten(), expected.pred_score.flatten(), atol=1e-3, rtol=0)
            if (expected.pred_score - 0.5).abs().item() > 1e-3:
                assert found.pred_label.flatten().tolist() == expected.pred_label.flatten().tolist()

    def test_a_checkpoint_that_was_not_calibrated_is_refused(self, build_model, datamodule, engine, tmp_path):
        engine.fit(model=build_model(), datamodule=datamodule)
        model = build_model(post_processor=NormalCalibratedPostProcessor())
        with pytest.raises(CalibrationError, match="was not calibrated on good images: run 'mixedteacher calibrate'"):
            engine.test(model=model, datamodule=datamodule, ckpt_path=engine.best_model_path)

    def test_a_file_that_is_no_checkpoint_is_refused(self, image_folder, tmp_path, capsys):
        (tmp_path / "model.ckpt").write_text("no")
        assert main(["calibrate", str(tmp_path / "model.ckpt"), "--good", str(image_folder / "good")]) == 1
        assert "is no checkpoint of anomalib's, or a damaged one" in capsys.readouterr().err
