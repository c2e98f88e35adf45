"""What makes training faster changes neither its result nor what is saved, and waits for no device."""

import logging
from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from anomalib_mixedteacher import plugin
from anomalib_mixedteacher.components import cached_teachers, distillation_module, speedups

SIZE = (64, 64)
# With statistics of two batches frozen, rounding errors would grow faster than what is looked for.
SMALL = {"resnet_layers": [1], "efficientnet_layers": [1], "freeze_bn_after_first_epoch": False}


class Losses(Callback):
    """Notes each step's loss, and how the students looked at it."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.compiled: set[bool] = set()
        self.channels_last: set[bool] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())
        students = pl_module.model.students
        self.compiled |= {student._compiled_call_impl is not None for student in students.values()}
        weights = [weight for weight in students.parameters() if weight.ndim == 4]
        self.channels_last |= {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights}


@pytest.fixture
def train(datamodule, teacher_folder, tmp_path):
    """Train a model of the package from the same seed: two epochs of two batches."""

    def train(callback: Callback, name: str = "MixedTeacher", trainer=None, **arguments):
        seed_everything(0, verbose=False)
        cls = plugin.public(name)
        weights = "random" if name == "Mkd" else str(teacher_folder)
        model = cls(teacher_weights=weights, pre_processor=cls.configure_pre_processor(SIZE), **arguments)
        engine = Engine(
            [callback],
            max_epochs=2,
            default_root_dir=tmp_path,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer or {},
        )
        engine.fit(model=model, datamodule=datamodule)
        return model, engine

    return train


# Only rounding differs, but Adam's first steps are as large for a gradient of rounding errors as for any other: initial
# weights that differ by 1e-7 part the losses of Mkd and Msfd as far, by up to 1e-3.
@pytest.mark.parametrize(
    ("name", "tolerance", "layers"), [("MixedTeacher", 1e-4, SMALL), ("Mkd", 1e-2, {}), ("Msfd", 1e-2, {})]
)
def test_channels_last_changes_neither_losses_nor_what_is_saved(train, name, tolerance, layers, monkeypatch):
    losses, usual = Losses(), Losses()
    model, engine = train(losses, name, **layers)
    monkeypatch.setattr(distillation_module, "suits_channels_last", lambda *_: False)
    train(usual, name, **layers)
    assert losses.channels_last == {True}
    assert False in usual.channels_last
    assert losses.values[0] == pytest.approx(usual.values[0], rel=1e-6)
    assert losses.values == pytest.approx(usual.values, rel=tolerance)
    assert all(weight.is_contiguous() for weight in model.model.students.parameters())
    checkpoint = torch.load(engine.best_model_path)
    assert all(value.is_contiguous() for value in checkpoint["state_dict"].values())


def test_the_fused_adam_changes_no_losses(train, monkeypatch):
    losses, usual = Losses(), Losses()
    _, engine = train(losses, **SMALL)
    assert engine.trainer.optimizers[0].param_groups[0]["fused"] is True
    monkeypatch.setattr(distillation_module, "suits_fused_adam", lambda *_: False)
    _, engine = train(usual, **SMALL)
    assert not engine.trainer.optimizers[0].param_groups[0]["fused"]
    assert losses.values == pytest.approx(usual.values, rel=1e-4)
    assert losses.values[0] != losses.values[-1]


def test_gradients_are_clipped_in_mixed_precision(train):
    """Lightning refuses to for a fused optimizer."""
    losses = Losses()
    train(losses, trainer={"precision": "bf16-mixed", "gradient_clip_val": 1.0}, **SMALL)
    assert all(value > 0 for value in losses.values)


def test_compilation_changes_neither_losses_nor_what_is_saved(train, monkeypatch):
    monkeypatch.setitem(speedups.COMPILE_ARGUMENTS, "backend", "aot_eager")  # all but the compiler
    losses, usual = Losses(), Losses()
    model, engine = train(losses, compile_students=True, **SMALL)
    other, _ = train(usual, **SMALL)
    assert losses.compiled == {True}
    assert usual.compiled == {False}
    assert losses.values == pytest.approx(usual.values, rel=1e-4)
    assert list(model.state_dict()) == list(other.state_dict())
    assert not any(student._compiled_call_impl for student in model.model.students.values())
    restored = type(model).load_from_checkpoint(engine.best_model_path)
    assert restored.hparams["compile_students"] is True
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(restored.eval()(images).anomaly_map, model.eval()(images).anomaly_map)


class ValidationGraphs(Callback):
    """Counts what is compiled, as its back end, and notes how often validation does so."""

    def __init__(self) -> None:
        self.count = 0
        self.in_validation: list[int] = []

    def __call__(self, graph, _):
        self.count += 1
        return graph

    def on_validation_start(self, trainer, pl_module):
        self.in_validation.append(-self.count)

    def on_validation_end(self, trainer, pl_module):
        self.in_validation[-1] += self.count


@pytest.mark.parametrize("localization", ["gradient", "smooth_grad"])
def test_validation_compiles_nothing(train, localization, monkeypatch):
    """Mkd's prediction computes the cloner with gradients, as training does."""
    graphs = ValidationGraphs()
    monkeypatch.setitem(speedups.COMPILE_ARGUMENTS, "backend", graphs)
    torch.compiler.reset()
    train(graphs, "Mkd", compile_students=True, sigma=1.0, localization=localization, smooth_samples=2)
    assert graphs.count > 0
    assert graphs.in_validation == [0, 0]


def test_students_are_as_before_after_an_exception(train):
    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.model = pl_module
            raise RuntimeError("on purpose")

    fail = Fail()
    with pytest.raises(RuntimeError, match="on purpose"):
        train(fail, compile_students=False, **SMALL)
    assert all(weight.is_contiguous() for weight in fail.model.model.students.parameters())
    assert fail.model._cached_teachers is None


class Reads(TorchDispatchMode):
    """Counts where the host reads a tensor's value, and so would wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


class EpochReads(Callback):
    """Counts the reads of each epoch's batches, from the data loader to what is logged."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.reads = Reads()
        self.reads.__enter__()

    def on_train_epoch_end(self, trainer, pl_module):
        self.reads.__exit__(None, None, None)
        self.counts.append(self.reads.count)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_steps_wait_for_no_accelerator(train, asynchronous, monkeypatch):
    """The CPU is treated as an accelerator; an optimiser that keeps its own numbers on the host is left out."""
    for module in (cached_teachers, distillation_module):
        monkeypatch.setattr(module, "is_asynchronous", lambda _: asynchronous)
    cls = plugin.public("MixedTeacher")
    monkeypatch.setattr(cls, "configure_optimizers", lambda self: torch.optim.SGD(self.model.students.parameters()))
    reads = EpochReads()
    train(reads, trainer={"limit_val_batches": 0}, **SMALL)
    loader = 2  # seeds of the order and of workers, drawn on the host
    batches = 2
    checked_and_shown = 2 * batches
    assert reads.counts[1] == loader + (0 if asynchronous else checked_and_shown)


def test_reports_from_which_epoch_on_training_brought_nothing(datamodule, build_model, tmp_path, caplog):
    model = build_model(learning_rate=1e-13, early_stopping_patience=None, **SMALL)
    model.on_train_epoch_start = lambda: model.model.students.eval()  # nothing learns: every epoch is as good
    engine = Engine(max_epochs=6, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    with caplog.at_level(logging.INFO):
        engine.fit(model=model, datamodule=datamodule)
    messages = [record.message for record in caplog.records if "within 1 %" in record.message]
    assert messages == ["Validation loss was within 1 % of its best from epoch 1 of 6 on: try max_epochs=1."]
    assert Path(engine.best_model_path).exists()
