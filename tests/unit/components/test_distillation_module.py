"""What the Lightning module does around training: limits, callbacks, restored sizes, what a fit leaves to the next."""

import logging
from pathlib import Path

import pytest
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import SingleDeviceStrategy

from anomalib_mixedteacher import MixedTeacher, Msfd, NormalCalibratedPostProcessor
from anomalib_mixedteacher.components.kept_images import KeptImages
from anomalib_mixedteacher.errors import ConfigurationError

SIZE = (48, 48)


def small(size: tuple[int, int] | None = (32, 32), **arguments) -> Msfd:
    if size is not None:
        arguments["pre_processor"] = Msfd.configure_pre_processor(size)
    return Msfd(**{"teacher_weights": "random", "layers": [1], **arguments})


@pytest.fixture
def make_engine(tmp_path):
    """Build an Engine on the CPU."""

    def make(*callbacks: Callback, **trainer) -> Engine:
        quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return Engine([*callbacks], default_root_dir=tmp_path / "results", **{**quiet, **trainer})

    return make


@pytest.fixture
def make_data(image_folder):
    """Build a datamodule over the tiny folder, of images of 96 pixels, that nothing has used yet."""

    def make(normal_dir: str = "good", **arguments) -> Folder:
        return Folder(
            "tiny", root=image_folder, normal_dir=normal_dir, normal_test_dir="good_test", abnormal_dir="bad",
            mask_dir="mask", train_batch_size=4, eval_batch_size=4, num_workers=0, seed=0, **arguments,
        )  # fmt: skip

    return make


class Synchronized(SingleDeviceStrategy):
    """A strategy that can exchange statistics between devices, without the other devices."""

    _layer_sync = None


def test_synchronized_batch_normalization_is_refused(make_engine, datamodule):
    """Lightning puts a plain normalisation in place of timm's, which has the activation in it."""
    model = MixedTeacher("random", pre_processor=MixedTeacher.configure_pre_processor((32, 32)))
    before = [type(module) for module in model.model.modules()]
    engine = make_engine(strategy=Synchronized("cpu"), sync_batchnorm=True, max_epochs=1)
    with pytest.raises(ConfigurationError, match=r"trainer\.sync_batchnorm would .*: leave it out"):
        engine.fit(model=model, datamodule=datamodule)
    assert [type(module) for module in model.model.modules()] == before
    assert engine.trainer.global_step == 0


@pytest.fixture(scope="module")
def half_trained(image_folder, tmp_path_factory) -> tuple[Msfd, Path]:
    """A model at another size than the class's, stopped after two of four epochs, and its checkpoint."""

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    data = Folder(
        "tiny", root=image_folder, normal_dir="good", normal_test_dir="good_test", abnormal_dir="bad", mask_dir="mask",
        train_batch_size=4, num_workers=0, seed=0,
    )  # fmt: skip
    model = small(SIZE)
    engine = Engine(
        [Stop()], max_epochs=4, default_root_dir=tmp_path_factory.mktemp("half"), accelerator="cpu",
        enable_progress_bar=False, logger=False,
    )  # fmt: skip
    engine.fit(model=model, datamodule=data)
    return model, Path(engine.best_model_path)


def test_a_restored_size_is_the_data_sets_too(half_trained, make_engine, make_data):
    trained, checkpoint = half_trained
    expected = make_engine().predict(trained, datamodule=make_data())
    found = make_engine().predict(small(None), datamodule=make_data(), ckpt_path=checkpoint)
    for batch, other in zip(found, expected, strict=True):
        torch.testing.assert_close(batch.pred_score, other.pred_score)
    (expected,) = make_engine().test(model=trained, datamodule=make_data(), verbose=False)
    data = make_data()
    (found,) = make_engine().test(model=small(None), datamodule=data, ckpt_path=checkpoint, verbose=False)
    assert found == pytest.approx(expected)
    assert data.test_data[0].image.shape[-2:] == SIZE
    (found,) = make_engine().validate(small(None), datamodule=make_data(), ckpt_path=checkpoint, verbose=False)
    (expected,) = make_engine().validate(trained, datamodule=make_data(), verbose=False)  # last: it sets thresholds
    assert found == pytest.approx(expected)


class Look(Callback):
    """Notes whether images are kept, and their size."""

    def on_train_start(self, trainer, pl_module):
        data = trainer.datamodule.train_data
        self.found = isinstance(data, KeptImages), data[0].image.shape[-2:]


@pytest.mark.parametrize("feature_cache", [0, 100])
def test_a_resumed_run_goes_on_at_the_restored_size(half_trained, make_engine, make_data, feature_cache):
    _, checkpoint = half_trained
    results = []
    for size in (SIZE, None):
        data, model, look = make_data(), small(size, feature_cache=feature_cache), Look()
        make_engine(look, max_epochs=4).fit(model=model, datamodule=data, ckpt_path=checkpoint)
        assert look.found == (feature_cache > 0, SIZE)
        assert not isinstance(data.train_data, KeptImages)
        results.append(model.state_dict())
    expected, found = results
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_path_to_weights_can_be_read_from_the_checkpoint(teacher_folder, make_engine, datamodule):
    model = small(teacher_weights=teacher_folder)
    engine = make_engine(max_epochs=1)
    engine.fit(model=model, datamodule=datamodule)
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    assert checkpoint["anomalib_mixedteacher"]["teacher_weights"] == str(teacher_folder)
    restored = Msfd.load_from_checkpoint(engine.best_model_path)
    assert restored.teacher_weights == restored.hparams["teacher_weights"] == str(teacher_folder)


class Limits(Callback):
    """Notes the number of epochs that are about to be trained, and ends training."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_train_start(self, trainer, pl_module):
        self.epochs.append(trainer.max_epochs)
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("arguments", "expected"), [({"max_epochs": 1000}, 1000), ({}, 7), ({"max_epochs": 3}, 3), ({"max_steps": 1}, -1)]
)
def test_only_a_trainer_without_a_limit_gets_the_models(arguments, expected, make_engine, datamodule, caplog):
    limits = Limits()
    with caplog.at_level(logging.INFO, "anomalib_mixedteacher"):
        engine = make_engine(limits, limit_val_batches=0, **arguments)
        engine.fit(model=small(max_epochs=7), datamodule=datamodule)
    assert limits.epochs == [expected]
    message = "No trainer.max_epochs given: training for this model's 7 epochs."
    assert (message in caplog.messages) == (not arguments)


def test_a_second_attempt_has_the_same_limit(make_engine, make_data, datamodule):
    limits = Limits()
    engine = make_engine(limits, limit_val_batches=0)
    with pytest.raises(FileNotFoundError):
        engine.fit(model=small(max_epochs=7), datamodule=make_data("no such folder"))
    engine.fit(model=small(max_epochs=7), datamodule=datamodule)
    assert limits.epochs == [7]


def stoppers(engine: Engine) -> list[EarlyStopping]:
    return [callback for callback in engine.trainer.callbacks if isinstance(callback, EarlyStopping)]


def test_the_users_early_stopping_takes_the_place_of_the_models(make_engine, datamodule):
    class Derived(EarlyStopping):
        pass

    mine = [EarlyStopping("train_loss", patience=0, mode="max"), Derived("image_AUROC", mode="max", strict=False)]
    engine = make_engine(*mine, max_epochs=9)
    engine.fit(model=small(), datamodule=datamodule)
    assert stoppers(engine) == mine
    assert engine.trainer.current_epoch < 9  # the loss falls


def test_another_fit_replaces_the_models_early_stopping(make_engine, datamodule):
    engine = make_engine(max_epochs=1)
    model = small(early_stopping_patience=2)
    engine.fit(model=model, datamodule=datamodule)
    (first,) = stoppers(engine)
    assert (first.monitor, first.patience) == ("val_loss", 2)
    assert first.state_key == EarlyStopping("val_loss").state_key  # checkpoints of earlier versions have it
    for other in (model, small(early_stopping_patience=3)):
        engine.fit(model=other, datamodule=datamodule)
        (second,) = stoppers(engine)
        assert second is not first
        assert second.patience == other.early_stopping_patience


def test_without_a_trainer_there_are_callbacks_too():
    assert any(isinstance(callback, EarlyStopping) for callback in small().configure_callbacks())


def test_an_interrupted_validation_leaves_nothing_to_the_next(make_engine, make_data):
    class Fail(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            raise RuntimeError("on purpose")

    model = small()
    with pytest.raises(RuntimeError, match="on purpose"):
        make_engine(Fail(), max_epochs=1).fit(model=model, datamodule=make_data())
    first, second = (make_engine().validate(model, datamodule=make_data(), verbose=False)[0] for _ in range(2))
    assert first["val_loss"] == second["val_loss"] > 0


def test_each_fit_gathers_its_own_statistics(make_engine, make_data, teacher_folder):
    pre_processor = MixedTeacher.configure_pre_processor((32, 32))
    model = MixedTeacher(
        teacher_folder, resnet_layers=[1], efficientnet_layers=[3], sigma=1.0, pre_processor=pre_processor
    )
    means = [model.model.anomaly_map_generator.good_mean.clone()]
    for _ in range(2):
        make_engine(max_epochs=1, limit_val_batches=0).fit(model=model, datamodule=make_data())
        means.append(model.model.anomaly_map_generator.good_mean.clone())
    untrained, first, second = means
    assert not torch.equal(first, untrained)
    assert not torch.equal(second, first)


def saved_epoch(engine: Engine) -> int:
    return torch.load(engine.best_model_path, weights_only=True)["epoch"]


@pytest.mark.parametrize("every", [1, 5])
def test_without_validation_images_training_runs_and_keeps_its_last_epoch(make_engine, make_data, every):
    """anomalib's datamodule fails where it has none, and Lightning saves at the end of a validation."""
    engine, data = make_engine(max_epochs=2, check_val_every_n_epoch=every), make_data(val_split_mode="none")
    model = small()
    engine.train(model=model, datamodule=data)
    assert saved_epoch(engine) == 1
    assert engine.trainer.callback_metrics["image_AUROC"] >= 0  # tested all the same
    # the trainer is as it was: other data are validated
    assert (engine.trainer.limit_val_batches, engine.trainer.check_val_every_n_epoch) == (1.0, every)
    engine.trainer.fit_loop.max_epochs = 7
    engine.fit(model=model, datamodule=make_data())
    assert model.post_processor.image_threshold.isfinite()


def test_neither_test_nor_validation_images(make_engine, image_folder):
    data = Folder(
        "tiny", root=image_folder, normal_dir="good", test_split_mode="none", val_split_mode="none", num_workers=0
    )
    engine = make_engine(max_epochs=1)
    engine.train(model=small(), datamodule=data)
    assert saved_epoch(engine) == 0


def test_images_that_a_post_processor_sets_aside_are_validated_on(make_engine, make_data):
    post_processor = NormalCalibratedPostProcessor(alarm_rate=0.4)
    engine = make_engine(max_epochs=1)
    model = small(post_processor=post_processor)
    engine.fit(model=model, datamodule=make_data(val_split_mode="none"))
    assert len(post_processor.image_scores) == 2
    assert saved_epoch(engine) == 0


def test_an_interrupted_training_without_validation_leaves_the_trainer_as_it_was(make_engine, make_data):
    class Fail(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise RuntimeError("on purpose")

    engine = make_engine(Fail(), max_epochs=1)
    with pytest.raises(RuntimeError, match="on purpose"):
        engine.fit(model=small(), datamodule=make_data(val_split_mode="none"))
    assert engine.trainer.limit_val_batches == 1.0
