"""``python -m anomalib_mixedteacher.benchmark.training_cost``: what an epoch of training costs, against the official one.

The official recipe trains the students one after the other, so its epoch is two passes over the images. Each pass needs
the student's own teacher only and runs no other, which is the reading most favourable to the official recipe; so is the
students' batch normalisation in evaluation mode from the second epoch on, as the official code has it. Everything else
is anomalib's Engine as a user runs it, without validation.

All variants run in turn within one process, in another order in each round. Epochs count from the second on.
"""

import argparse
import gc
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from unittest import mock

import lightning
import numpy as np
import torch
from anomalib.data import Batch
from anomalib.engine import Engine
from lightning.pytorch.callbacks import Callback
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize, Transform

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.cell import STATISTICS_IMAGES, build
from anomalib_mixedteacher.benchmark.fresh_process import peak_memory
from anomalib_mixedteacher.benchmark.speed import available_cores, processor_name
from anomalib_mixedteacher.benchmark.speed_models import prepare_data
from anomalib_mixedteacher.cache_folder import CACHE_VARIABLE
from anomalib_mixedteacher.components.pre_processing import default_transform
from anomalib_mixedteacher.components.training_data import sample_batches
from anomalib_mixedteacher.errors import ConfigurationError, MixedTeacherError
from anomalib_mixedteacher.models.mixed_teacher.loss import MixedTeacherLoss
from anomalib_mixedteacher.models.mixed_teacher.torch_model import MixedTeacherModel

OFFICIAL, OURS = "official", "MixedTeacher"
LEARNING_RATE = 4e-4
PROFILED_EPOCH = 1  # the first one that finds the cache filled
OPERATORS = 12


class Epoch(NamedTuple):
    """Seconds of an epoch, and of these the ones behind its last batch."""

    seconds: float
    tail: float


class EpochTimer(Callback):
    """Times each epoch up to the start of the next one.

    A callback hears of an epoch's end before the module does, whose statistics of good images come then, and before the
    checkpoint is written. Whoever trains waits for both, so both count; the tail tells them from the loop.
    """

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._loop_ends: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self._starts.append(_now())

    def on_train_epoch_end(self, *_: Any) -> None:
        self._loop_ends.append(_now())

    def on_train_end(self, *_: Any) -> None:
        self._starts.append(_now())

    @property
    def epochs(self) -> list[Epoch]:
        """The epochs of a finished training."""
        times = zip(self._starts[:-1], self._loop_ends, self._starts[1:], strict=True)
        return [Epoch(end - start, end - loop_end) for start, loop_end, end in times]


class ChannelsLast(Callback):
    """Keeps a model's weights and its training images in channels-last order."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del trainer
        pl_module.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,operator,union-attr]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        # before the pre-processor, whose transform keeps the order
        batch.image = batch.image.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]


class LoopProfiler(Callback):
    """Records the operators of one epoch, from its start to behind its last batch."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.current_epoch == PROFILED_EPOCH:
            self.profiler.start()
            self.seconds = -_now()

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.current_epoch == PROFILED_EPOCH:
            self.seconds += _now()
            self.profiler.stop()


@dataclass(frozen=True)
class Variant:
    """A training through the Engine: the model, its arguments, the trainer's, and classes of callbacks."""

    model: str = OURS
    arguments: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[type[Callback], ...] = ()


VARIANTS = {
    OURS: Variant(),
    f"{OURS}:feature_cache=0": Variant(arguments={"feature_cache": 0}),
    f"{OURS}:channels_last": Variant(callbacks=(ChannelsLast,)),
    f"{OURS}:bf16-mixed": Variant(trainer={"precision": "bf16-mixed"}),
    "Stfpm": Variant("Stfpm"),
}


def train_officially(model: MixedTeacherModel, loader: DataLoader, transform: Transform, epochs: int) -> list[Epoch]:
    """Train the students one after the other, each with its own teacher in the loop, in float32.

    Args:
        model: Networks with loaded teachers; the students are trained in place.
        loader: Batches of good images.
        transform: What normalises a batch of images.
        epochs: Passes over the images for each student.

    Returns:
        Time by epoch, both students' passes together.
    """
    device = next(model.parameters()).device
    loss_of = MixedTeacherLoss()
    seconds = np.zeros(epochs)
    for name, student in model.students.items():
        optimizer = Adam(student.parameters(), lr=LEARNING_RATE)
        scheduler = OneCycleLR(optimizer, max_lr=10 * LEARNING_RATE, total_steps=epochs * len(loader))
        for epoch in range(epochs):
            start = _now()
            student.train(epoch == 0)
            for batch in loader:
                images = transform(batch.image.to(device))
                loss = loss_of({name: model.teachers[name](images)}, {name: student(images)})[name]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
            seconds[epoch] += _now() - start
    return [Epoch(float(value), 0.0) for value in seconds]


def train(name: str, settings: argparse.Namespace, callbacks: Sequence[Callback] = ()) -> list[Epoch]:
    """Train a variant from the same seed on the same images as every other.

    Args:
        name: ``"official"`` or a name in :data:`VARIANTS`.
        settings: The parsed command line.
        callbacks: More callbacks; the official loop has none.

    Returns:
        Time by epoch; the run's start (checking the images, loading the teachers) is in none.
    """
    gc.collect()  # the variant before is not to be in this one's memory
    lightning.seed_everything(0, verbose=False)
    datamodule = prepare_data(settings)
    datamodule.train_batch_size = settings.batch
    if name == OFFICIAL:
        size = (settings.image_size, settings.image_size)
        datamodule.train_data.augmentations = Resize(size, antialias=True)  # as the Engine does: resized one by one
        loader, transform = datamodule.train_dataloader(), default_transform(size)
        model = MixedTeacherModel()
        model.load_teachers(settings.teacher_weights)
        if settings.teacher_weights == "random":
            images = torch.cat([transform(batch.image) for batch in sample_batches(loader, STATISTICS_IMAGES)])
            for teacher in model.teachers.values():
                teacher.set_normalization_statistics(images)
        return train_officially(model.to(settings.device), loader, transform, settings.epochs)
    variant, timer = VARIANTS[name], EpochTimer()
    module, needed = build(variant.model, settings.teacher_weights, settings.image_size, **variant.arguments)
    callbacks = [timer, *needed, *(make() for make in variant.callbacks), *callbacks]
    # a cache folder of its own: a file of features that an earlier run left would spare the first epoch its teachers
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {CACHE_VARIABLE: folder}):
        engine = Engine(
            callbacks,
            default_root_dir=folder,
            accelerator=settings.device,
            devices=1,
            max_epochs=settings.epochs,
            limit_val_batches=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            **variant.trainer,
        )
        engine.fit(model=module, datamodule=datamodule)
    return timer.epochs


def measure(settings: argparse.Namespace) -> dict[str, list[list[Epoch]]]:
    """Train each variant once a round, another one first in each; returns epochs by round, by variant."""
    names: list[str] = settings.variants
    measured: dict[str, list[list[Epoch]]] = {name: [] for name in names}
    for turn in range(settings.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            print(f"Round {turn + 1} of {settings.rounds}: {name} ...", file=sys.stderr, flush=True)
            measured[name].append(train(name, settings))
    return measured


def table(measured: Mapping[str, Sequence[Sequence[Epoch]]]) -> str:
    """Format times as ratios to the official recipe's in the same round.

    Args:
        measured: Epochs by round, by variant; two epochs or more a round.

    Returns:
        Markdown table: the median over rounds and their range of each variant's median epoch from the second on, the
        share of its time behind the last batch, and a row for the epoch that fills the cache; ``-`` for ratios where
        the official recipe was not measured.
    """
    lines = ["| variant | epoch / official | range | behind the last batch |", "| --- " * 4 + "|"]
    for name, rounds in measured.items():
        rows = {name.replace(":", ", "): [epochs[1:] for epochs in rounds]}
        if name == OURS:
            rows[f"{OURS}, first epoch"] = [epochs[:1] for epochs in rounds]
        for label, chosen in rows.items():
            tail = np.median([epoch.tail / epoch.seconds for epochs in chosen for epoch in epochs])
            cells = [label, "-", "-", f"{tail:.0%}"]
            if OFFICIAL in measured:
                official = [_median(epochs[1:]) for epochs in measured[OFFICIAL]]
                ratios = np.array([_median(epochs) for epochs in chosen]) / official
                cells[1:3] = f"{np.median(ratios):.2f}", f"{ratios.min():.2f} to {ratios.max():.2f}"
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def operator_table(averages: Sequence[Any], seconds: float) -> str:
    """Format the operators of a profiled loop that take most time of their own.

    Args:
        averages: torch's averages by operator: ``key``, ``count`` and ``self_cpu_time_total`` in microseconds.
        seconds: Time of the loop.

    Returns:
        Markdown table of shares of the loop; what no listed operator takes is the last line.
    """
    most = sorted(averages, key=lambda average: -average.self_cpu_time_total)[:OPERATORS]
    lines = ["| operator | share of the loop | calls |", "| --- " * 3 + "|"]
    rest = 1.0
    for average in most:
        share = average.self_cpu_time_total / 1e6 / seconds
        rest -= share
        lines.append(f"| {average.key} | {share:.1%} | {average.count} |")
    return "\n".join([*lines, f"| everything else | {rest:.1%} | |"])


def _report(settings: argparse.Namespace, measured: Mapping[str, Sequence[Sequence[Epoch]]], command: str) -> str:
    threads = f"{torch.get_num_threads()} threads"
    where = threads if settings.device == "cpu" else torch.cuda.get_device_name()
    amounts = f"{settings.images} images of {settings.image_size} x {settings.image_size}, batch {settings.batch}"
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    lines = [
        f"    {command}",
        "",
        f"- {date}, anomalib-mixedteacher {__version__}, torch {torch.__version__}",
        f"- {processor_name()}, {available_cores()} cores, {where}",
        f"- {settings.data}, {amounts}, {settings.teacher_weights} teachers, {settings.epochs} epochs, "
        f"{settings.rounds} rounds",
    ]
    if OFFICIAL in measured:
        rate = settings.images / float(np.median([_median(epochs[1:]) for epochs in measured[OFFICIAL]]))
        lines.append(f"- the official recipe trains both students on {rate:.1f} images/s")
    memory = peak_memory()
    if memory is not None:
        lines.append(f"- peak resident memory of the process, all its variants together: {memory:.0f} MB")
    return "\n".join([*lines, "", table(measured)])


def _median(epochs: Sequence[Epoch]) -> float:
    return float(np.median([epoch.seconds for epoch in epochs]))


def _now() -> float:
    """Read the clock when an accelerator has done its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    names = [OFFICIAL, *VARIANTS]
    parser = argparse.ArgumentParser(prog="training_cost", description=__doc__)
    parser.add_argument("--data", choices=["MagneticTile", "SyntheticTextures"], default="SyntheticTextures")
    parser.add_argument("--root", help="folder of the magnetic tiles")
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels")
    parser.add_argument("--images", type=int, default=64, help="good training images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each variant in a round, 2 or more")
    parser.add_argument("--teacher-weights", default="random", metavar="SOURCE")
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="VARIANT", help=", ".join(names))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--profile", action="store_true", help=f"also profile {OURS}'s loop, by a training of its own")
    settings = parser.parse_args(arguments)
    try:
        if settings.epochs < 2:
            msg = "The first epoch fills the cache and does not count: give --epochs 2 or more."
            raise ConfigurationError(msg)
        measured = measure(settings)
        given = sys.argv[1:] if arguments is None else arguments
        print(_report(settings, measured, shlex.join(["python", "-m", f"{__package__}.training_cost", *given])))
        if settings.profile:
            profiler = LoopProfiler()
            train(OURS, settings, [profiler])
            print(f"\n{operator_table(profiler.profiler.key_averages(), profiler.seconds)}")
    except MixedTeacherError as error:
        print(f"training_cost: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
