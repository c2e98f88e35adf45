"""Thresholds from good images alone, through anomalib's Engine: training, checkpoint, export, other models."""

import shutil

import pytest
import torch
from anomalib.data import Folder

from anomalib_mixedteacher import MixedTeacher, NormalCalibratedPostProcessor
from anomalib_mixedteacher.cli import main
from anomalib_mixedteacher.decoding import read_image
from anomalib_mixedteacher.edge import EdgeDetector
from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError
from mixedteacher_edge.conformal import conformal_threshold

SETTINGS = {"alarm_rate": 0.34, "min_area": 4}


def raw_scores(model, dataset):
    images = torch.stack([dataset[index].image for index in range(len(dataset))])
    with torch.no_grad():
        # not the pre-processor's forward, in which anomalib's own resizes without antialiasing
        return model.eval().model(model.pre_processor.transform(images)).pred_score.flatten()


@pytest.fixture(scope="module")
def good_only(image_folder):
    """Good images alone, a third of them for the thresholds."""

    def make(**arguments):
        usual = {"test_split_mode": "none", "val_split_mode": "from_train", "val_split_ratio": 0.34}
        batches = {"train_batch_size": 2, "num_workers": 0, "seed": 0}
        return Folder("tiny", root=image_folder, normal_dir="good_test", **usual | batches | arguments)

    return make


@pytest.fixture(scope="module")
def calibrated(good_only, build_model, tmp_path_factory):
    """A model trained and calibrated on good images only, its engine and its data."""
    from tests.conftest import quiet_engine

    model = build_model(post_processor=NormalCalibratedPostProcessor(**SETTINGS))
    engine, data = quiet_engine(tmp_path_factory.mktemp("calibrated"), max_epochs=2), good_only()
    engine.fit(model=model, datamodule=data)
    return model, engine, data


def test_threshold_is_that_of_the_final_model_on_the_validation_images(calibrated):
    model, _, data = calibrated
    scores = raw_scores(model, data.val_data)
    assert len(scores) == 2
    kept = model.post_processor.image_scores
    torch.testing.assert_close(kept, scores.sort().values, rtol=1e-3, atol=0)  # training keeps features in float16
    assert model.post_processor.image_threshold.item() == conformal_threshold(kept, 0.34)


def test_checkpoint_brings_the_thresholds_into_a_model_with_another_post_processor(calibrated):
    model, engine, _ = calibrated
    restored = MixedTeacher.load_from_checkpoint(engine.best_model_path, map_location="cpu")
    assert isinstance(restored.post_processor, NormalCalibratedPostProcessor)
    assert restored.post_processor.thresholds == model.post_processor.thresholds


def test_settings_that_give_way_to_the_checkpoints_are_told_and_sensitivities_refused(calibrated, build_model, caplog):
    checkpoint = torch.load(calibrated[1].best_model_path, map_location="cpu", weights_only=False)
    model = build_model(post_processor=NormalCalibratedPostProcessor(alarm_rate=0.1))
    model.on_load_checkpoint(checkpoint)
    assert "Using the checkpoint's alarm_rate=0.34, min_area=4;" in caplog.text
    model = build_model()
    model.post_processor.image_sensitivity = 0.7
    with pytest.raises(ConfigurationError, match="would move a calibrated model's thresholds off their budget"):
        model.on_load_checkpoint(checkpoint)


def test_the_export_decides_alike(calibrated, image_folder, tmp_path):
    model, engine, _ = calibrated
    path = engine.export(model=model, export_type="openvino", export_root=tmp_path, onnx_kwargs={"verbose": False})
    detector = EdgeDetector(path, cache=None)
    assert detector.record.thresholds == model.post_processor.thresholds
    for image in (image_folder / "bad" / "0.png", image_folder / "good" / "0.png"):
        found = detector.predict(image)
        (expected,) = engine.predict(model=model, data_path=image)
        assert found.score == pytest.approx(expected.pred_score.item(), abs=1e-3)  # in units of two images' spread
        if abs(found.score - 0.5) > 1e-3:
            assert found.label == bool(expected.pred_label.item())


def test_without_good_validation_images_training_is_refused(good_only, build_model, make_engine):
    model = build_model(post_processor=NormalCalibratedPostProcessor())
    with pytest.raises(CalibrationError, match=r"--data.val_split_mode from_train --data.val_split_ratio 0.2"):
        make_engine(max_epochs=1).fit(model=model, datamodule=good_only(val_split_mode="none"))


def test_thresholds_of_an_earlier_epoch_are_told(good_only, build_model, make_engine, caplog):
    for epochs, told in ((3, True), (2, False)):
        caplog.clear()
        model = build_model(post_processor=NormalCalibratedPostProcessor(**SETTINGS))
        make_engine(max_epochs=epochs, check_val_every_n_epoch=2).fit(model=model, datamodule=good_only())
        assert ("The last validation was before the training's last step" in caplog.text) == told


def test_any_anomalib_model(good_only, make_engine):
    from anomalib.models import Padim

    processor = NormalCalibratedPostProcessor(**SETTINGS)
    model = Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=10, post_processor=processor)
    engine, data = make_engine(max_epochs=1), good_only()
    engine.fit(model=model, datamodule=data)
    torch.testing.assert_close(processor.image_scores, raw_scores(model, data.val_data).sort().values)
    checkpoint = engine.trainer.checkpoint_callback.best_model_path
    named = NormalCalibratedPostProcessor()
    Padim.load_from_checkpoint(checkpoint, map_location="cpu", post_processor=named, pre_trained=False)
    assert named.thresholds == processor.thresholds


class TestCommand:
    def run(self, calibrated, *arguments):
        return main(["calibrate", calibrated[1].best_model_path, *map(str, arguments)])

    def test_new_thresholds_without_training(
        self, calibrated, build_model, make_engine, image_folder, tmp_path, capsys
    ):
        good = tmp_path / "Prüfbilder"
        shutil.copytree(image_folder / "good", good)
        output = tmp_path / "new.ckpt"
        assert self.run(calibrated, "--good", good, "--alarm-rate=0.25", "--min-area=4", "--output", output) == 0
        printed = capsys.readouterr().out
        assert "8 good images, budget 0.25" in printed
        assert "expected false alarms in 1000 good images: 222.2" in printed  # 2 of 9 places
        restored = MixedTeacher.load_from_checkpoint(output, map_location="cpu").eval()
        thresholds = restored.post_processor.thresholds
        assert thresholds.image == conformal_threshold(thresholds.image_scores, 0.25)
        # the model itself is the old one
        state = torch.load(calibrated[1].best_model_path, weights_only=True)["state_dict"]
        kept = torch.load(output, weights_only=True)["state_dict"]
        assert all(torch.equal(kept[key], value) for key, value in state.items() if key.startswith("model."))
        # the trainer takes a model's callbacks before it restores the checkpoint
        image = image_folder / "bad" / "0.png"
        (found,) = make_engine().predict(model=build_model(), data_path=image, ckpt_path=output)
        expected = restored(read_image(image, as_tensor=True)[None])
        torch.testing.assert_close(found.pred_score.flatten(), expected.pred_score.flatten(), atol=1e-3, rtol=0)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--good={good}", "--alarm-rate=0.01"], "takes 99 good calibration images, but there are 8: add images"),
            (["--good={good}", "--alarm-rate=0.2", "--output={root}/none/new.ckpt"], "There is no folder"),
            (["--good={root}/nowhere"], "There is no file or folder"),
            (["--good={good}", "--alarm-rate=0.25", "--min-area=100000"], "which has 64 x 64: give a smaller one"),
            (["--good={good}", "--output=/proc/new.ckpt"], "Cannot write /proc/new.ckpt"),
        ],
    )
    def test_errors_are_one_sentence_and_leave_nothing(
        self, calibrated, image_folder, tmp_path, capsys, arguments, sentence
    ):
        folders = {"good": image_folder / "good", "root": tmp_path}
        arguments = [argument.format(**folders) for argument in arguments]
        assert self.run(calibrated, "--output", tmp_path / "new.ckpt", *arguments) == 1
        error = capsys.readouterr().err.strip()
        assert sentence in error
        assert len(error.splitlines()) == 1
        assert not list(tmp_path.glob("*new*"))

    def test_a_full_disk(self, calibrated, image_folder, tmp_path, capsys, monkeypatch):
        def full(content, path):
            path.write_bytes(b"half")
            raise RuntimeError("file write failed\n...")

        monkeypatch.setattr(torch, "save", full)
        arguments = ["--good", image_folder / "good", "--alarm-rate=0.25", "--output", tmp_path / "new.ckpt"]
        assert self.run(calibrated, *arguments) == 1
        assert "free space there, or give another --output." in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_a_file_that_is_no_checkpoint_is_refused(self, image_folder, tmp_path, capsys):
        good = ["--good", str(image_folder / "good")]
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        (tmp_path / "text.ckpt").write_text("no")
        for name, sentence in (
            ("nowhere.ckpt", "There is no checkpoint"),
            ("other.ckpt", "is not a checkpoint of MixedTeacher"),
            ("text.ckpt", "is no checkpoint of anomalib's, or a damaged one"),
        ):
            assert main(["calibrate", str(tmp_path / name), *good]) == 1
            assert sentence in capsys.readouterr().err
