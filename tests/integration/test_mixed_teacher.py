"""MixedTeacher through anomalib's Engine: the recipe of its training, checkpoints, and what users do wrong."""

import copy

import numpy as np
import openvino
import pytest
import torch
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, RandomHorizontalFlip

from anomalib_mixedteacher import MixedTeacher
from anomalib_mixedteacher.errors import ConfigurationError


class Note(Callback):
    """Notes, in each step, the learning rate and a running mean of the student's batch normalisation."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.rates: list[float] = []
        self.means: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer, pl_module):
        norm = next(layer for layer in pl_module.model.students.modules() if isinstance(layer, nn.BatchNorm2d))
        self.means.append(norm.running_mean.clone())
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 == self.stop_after


class Count(Callback):
    """Counts the images that a teacher sees."""

    def on_fit_start(self, trainer, pl_module):
        self.seen = 0
        pl_module.model.teachers["resnet"].register_forward_pre_hook(self.add)

    def add(self, _, inputs):
        self.seen += len(inputs[0])


@pytest.mark.parametrize("arguments", [{}, {"architecture": "paper"}])
def test_finds_the_defects(trained, make_data, arguments):
    run = trained(**arguments)
    (metrics,) = run.engine.test(model=run.model, datamodule=make_data(), verbose=False)
    assert metrics["image_AUROC"] > 0.9
    assert metrics["pixel_AUROC"] > 0.9


def test_a_checkpoint_says_where_it_comes_from(trained):
    record = torch.load(trained().checkpoint, weights_only=True)["anomalib_mixedteacher"]
    assert (record["model"], record["teacher_weights"]) == ("MixedTeacher", "packaged")
    assert record["fingerprints"].keys() == {"resnet18", "tf_efficientnet_lite0"}
    assert record["training_data"]["images"] == 8
    restored = MixedTeacher.load_from_checkpoint(trained().checkpoint)
    assert restored.provenance == trained().model.provenance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"trained with architecture=paper: build the model with the same arguments\."),
        ({"architecture": "fast", "sigma": 2.0}, r"trained with sigma=2\.0: build the model with the same"),
        (None, r"This checkpoint is not a MixedTeacher's: give one that MixedTeacher trained\."),  # of plain Lightning
    ],
)
def test_checkpoints_of_other_networks_are_refused(trained, change, message):
    checkpoint = torch.load(trained(architecture="paper").checkpoint, weights_only=True)
    if change is None:
        checkpoint = {"state_dict": checkpoint["state_dict"]}
    else:
        checkpoint["hyper_parameters"].update(change)
    with pytest.raises(ConfigurationError, match=message):
        MixedTeacher().on_load_checkpoint(checkpoint)


def test_a_checkpoint_of_another_size_is_judged_at_its_size(trained, make_data, make_engine):
    """The command line builds a model of default size before it reads the checkpoint."""
    sizes = []

    class Look(Callback):
        def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            sizes.append(tuple(batch.image.shape[-2:]))

    data = make_data()
    (expected,) = make_engine().test(model=trained().model, datamodule=make_data(), verbose=False)
    engine = make_engine(callbacks=[Look()])
    (found,) = engine.test(MixedTeacher(), datamodule=data, ckpt_path=trained().checkpoint, verbose=False)
    assert found == pytest.approx(expected)
    assert data.test_data[0].image.shape[-2:] == (64, 64)
    assert set(sizes) == {(64, 64)}


def test_a_resumed_run_ends_in_the_same_weights(build_model, make_data, make_engine, tmp_path):
    def run(name: str, note: Note, size: int = 64, checkpoint: str | None = None):
        data = make_data(test_split_mode="none", val_split_mode="none")
        data.setup()
        # in order: what is drawn at random on the way is not the model's affair
        loader = DataLoader(data.train_data, batch_size=4, collate_fn=data.train_data.collate_fn)
        engine = make_engine(callbacks=[note], default_root_dir=tmp_path / name, max_epochs=4, limit_val_batches=0)
        model = build_model(image_size=(size, size))
        engine.fit(model=model, train_dataloaders=loader, ckpt_path=checkpoint)
        return engine, model.state_dict()

    whole, parts = Note(), [Note(stop_after=2), Note()]
    engine, expected = run("whole", whole)
    stopped, _ = run("first", parts[0])
    assert stopped.trainer.global_step == 4
    resumed, found = run("second", parts[1], size=96, checkpoint=stopped.best_model_path)
    assert resumed.trainer.global_step == engine.trainer.global_step == 8
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    # one cycle over all steps, whose peak is ten times the learning rate
    assert whole.rates == parts[0].rates + parts[1].rates
    assert whole.rates[0] == pytest.approx(4e-3 / 25)
    assert 3.5e-3 < max(whole.rates) < 4e-3 * (1 + 1e-9)
    assert whole.rates[-1] < 1e-6
    # batch normalisation keeps the statistics of the first epoch
    assert whole.means[0].any()
    assert all(torch.equal(mean, whole.means[0]) for mean in whole.means + parts[1].means)


def test_resuming_for_more_epochs_is_told(trained, build_model, datamodule, make_engine):
    with pytest.raises(ConfigurationError, match="schedule has 20 steps, this run 24: resume with the same number"):
        make_engine(max_epochs=12).fit(build_model(), datamodule=datamodule, ckpt_path=trained().checkpoint)


@pytest.mark.parametrize(("arguments", "epochs"), [({}, 2), ({"max_epochs": 1}, 1), ({"max_steps": 6}, 3)])
def test_the_models_number_of_epochs_holds_where_the_trainer_has_none(
    build_model, datamodule, make_engine, arguments, epochs
):
    engine = make_engine(limit_val_batches=0, **arguments)
    engine.fit(model=build_model(max_epochs=2), datamodule=datamodule)
    assert engine.trainer.current_epoch == epochs
    steps = engine.trainer.lr_scheduler_configs[0].scheduler.total_steps
    assert steps == engine.trainer.global_step == 2 * epochs  # eight images in batches of four


@pytest.mark.parametrize(
    ("cache", "augmentations", "seen"),
    [
        (100, None, 8),
        (0, None, 32),  # in two epochs, and for the statistics behind each
        (100, Compose([RandomHorizontalFlip()]), 32),
    ],
)
def test_teachers_see_an_image_once_unless_it_changes(build_model, make_data, make_engine, cache, augmentations, seen):
    count = Count()
    data = make_data(train_augmentations=augmentations)
    engine = make_engine(callbacks=[count], max_epochs=2, limit_val_batches=0)
    engine.fit(model=build_model(feature_cache=cache), datamodule=data)
    assert count.seen == seen


def test_the_cache_changes_the_loss_by_its_rounding_only(build_model, datamodule, make_engine):
    losses = []
    for cache in (0, 100):
        torch.manual_seed(0)
        engine = make_engine(max_epochs=2)
        engine.fit(model=build_model(feature_cache=cache), datamodule=datamodule)
        losses.append([engine.trainer.callback_metrics[name].item() for name in ("train_loss_epoch", "val_loss")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_random_teachers_are_normalised_on_the_data_and_told(build_model, datamodule, make_engine, caplog):
    model = build_model(teacher_weights="random")
    make_engine(max_epochs=1, limit_val_batches=0).fit(model=model, datamodule=datamodule)
    assert "Teacher resnet18: random weights, for tests and comparisons only." in caplog.messages
    assert model.model.teachers["resnet"].bn1.running_var.std() > 0


def test_mixed_precision_trains_without_nan(build_model, datamodule, make_engine):
    model = build_model()  # 16-mixed runs on GPUs only; the float16 distance is tested in test_distance.py
    engine = make_engine(max_epochs=2, precision="bf16-mixed")
    engine.fit(model=model, datamodule=datamodule)
    assert all(value.isfinite() for key, value in engine.trainer.callback_metrics.items() if "loss" in key)
    assert all(value.isfinite().all() for value in model.model.state_dict().values())


class Synchronized(SingleDeviceStrategy):
    """A strategy that can exchange statistics between devices, without the other devices."""

    _layer_sync = None


def test_each_fit_gathers_its_own_statistics(tiny_model, make_data, make_engine):
    means = []
    for _ in range(2):
        make_engine(max_epochs=1, limit_val_batches=0).fit(model=tiny_model, datamodule=make_data())
        means.append(tiny_model.model.anomaly_map_generator.good_mean.clone())
    assert not torch.equal(*means)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "bf16-true"}, "precision=bf16-true .*: use 32-true or bf16-mixed"),
        ({"precision": "64-true"}, "precision=64-true .*: use 32-true or bf16-mixed"),
        ({"max_epochs": -1}, r"give trainer\.max_epochs or trainer\.max_steps"),
        # Lightning puts a plain normalisation in place of timm's, which has the activation in it
        ({"strategy": Synchronized("cpu"), "sync_batchnorm": True}, r"sync_batchnorm would .*: leave it out"),
    ],
)
def test_what_the_trainer_cannot_do_is_told(tiny_model, datamodule, make_engine, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_engine(**arguments).fit(model=tiny_model, datamodule=datamodule)


def test_raw_maps_of_a_graph_of_fixed_size(trained, tmp_path):
    """Without resize, without the post-processor, which clamps differences away; fused as the official code does."""
    model = copy.deepcopy(trained().model).eval()
    model.post_processor = None
    model.pre_processor = PreProcessor(Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]))
    model.model.anomaly_map_generator.fusion = "product"
    xml = model.to_openvino(tmp_path, input_size=(64, 96))
    compiled = openvino.Core().compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert compiled.input(0).partial_shape.to_string() == "[?,3,64,96]"
    images = F.interpolate(torch.rand(2, 3, 12, 12), (64, 96), mode="bilinear")
    with torch.no_grad():
        expected = model(images)
    for name, values in (("anomaly_map", expected.anomaly_map), ("pred_score", expected.pred_score)):
        assert np.abs(compiled(images.numpy())[name] - values.numpy()).max() < 1e-4 * values.max()
