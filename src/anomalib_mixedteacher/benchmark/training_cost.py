"""``python -m anomalib_mixedteacher.benchmark.training_cost``: what an epoch costs, against the official recipe's.

The official recipe trains the students one after the other, so its epoch is two passes over the images. Each pass needs
the student's own teacher only and runs no other, which is the reading most favourable to the official recipe
(``both_teachers`` is the other one); so is the students' batch normalisation in evaluation mode from the second epoch
on, as the official code has it. Everything else is anomalib's Engine as a user runs it, without validation. All
variants run in turn within one process, another one first in each round. Epochs count from the second on; a run's start
(checking images, loading teachers) does not count.
"""

import argparse
import gc
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple
from unittest import mock

import lightning
import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from lightning.pytorch.callbacks import Callback, LambdaCallback
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize, Transform

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.build import build
from anomalib_mixedteacher.benchmark.fresh_process import peak_memory
from anomalib_mixedteacher.benchmark.speed import available_cores, processor_name
from anomalib_mixedteacher.benchmark.speed_models import prepare_data
from anomalib_mixedteacher.cache_folder import CACHE_VARIABLE
from anomalib_mixedteacher.components import distillation_module
from anomalib_mixedteacher.components.distillation_module import STATISTICS_IMAGES
from anomalib_mixedteacher.components.heap import KeptHeap
from anomalib_mixedteacher.components.pre_processing import default_transform
from anomalib_mixedteacher.components.training_data import sample_batches
from anomalib_mixedteacher.errors import MixedTeacherError
from anomalib_mixedteacher.models.mixed_teacher.loss import MixedTeacherLoss
from anomalib_mixedteacher.models.mixed_teacher.torch_model import MixedTeacherModel

OFFICIAL, BOTH, OURS, PEER = "official", "official:both_teachers", "MixedTeacher", "Stfpm"
LEARNING, UNCACHED, BFLOAT16 = "MixedTeacher:learning_bn", "MixedTeacher:feature_cache=0", "MixedTeacher:bf16-mixed"
CONTIGUOUS, USUAL_HEAP, COMPILED = "MixedTeacher:contiguous", "MixedTeacher:usual_heap", "MixedTeacher:compile"
NAMES = [OFFICIAL, BOTH, OURS, LEARNING, UNCACHED, CONTIGUOUS, USUAL_HEAP, BFLOAT16, COMPILED, PEER]
ARGUMENTS: dict[str, dict[str, Any]] = {
    LEARNING: {"freeze_bn_after_first_epoch": False},
    UNCACHED: {"feature_cache": 0},
    COMPILED: {"compile_students": True},
}
LEARNING_RATE = 4e-4
OPERATORS = 12


class Epoch(NamedTuple):
    """Seconds of an epoch, and of these the ones behind its last batch."""

    seconds: float
    tail: float


class EpochTimer(LambdaCallback):
    """Times each epoch up to the start of the next one.

    A callback hears of an epoch's end before the module does, whose statistics of good images come then, and before the
    checkpoint is written. Whoever trains waits for both, so both count, as the epoch's tail.
    """

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.loop_ends: list[float] = []
        super().__init__(
            on_train_epoch_start=lambda *_: self.starts.append(_now()),
            on_train_epoch_end=lambda *_: self.loop_ends.append(_now()),
            on_train_end=lambda *_: self.starts.append(_now()),
        )

    @property
    def epochs(self) -> list[Epoch]:
        """The epochs of a finished training."""
        times = zip(self.starts[:-1], self.loop_ends, self.starts[1:], strict=True)
        return [Epoch(end - start, end - loop_end) for start, loop_end, end in times]


class LoopProfiler(LambdaCallback):
    """Records the operators of the second epoch, the first that finds the cache filled, without its tail."""

    def __init__(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.seconds = 0.0
        super().__init__(on_train_epoch_start=self._start, on_train_epoch_end=self._stop)

    def _start(self, trainer: lightning.Trainer, _: Any) -> None:
        if trainer.current_epoch == 1:
            self.profile.start()
            self.seconds = -_now()

    def _stop(self, trainer: lightning.Trainer, _: Any) -> None:
        if trainer.current_epoch == 1:
            self.seconds += _now()
            self.profile.stop()


@contextmanager
def without(name: str) -> Iterator[None]:
    """Train without what a variant leaves out of our training's layout of memory."""
    if name == CONTIGUOUS:
        with mock.patch.object(distillation_module, "suits_channels_last", return_value=False):
            yield
    elif name == USUAL_HEAP:
        with mock.patch.object(KeptHeap, "on_fit_start"):
            yield
    else:
        yield


def train_officially(
    model: MixedTeacherModel, loader: DataLoader, transform: Transform, epochs: int, both: bool = False
) -> list[Epoch]:
    """Train the students one after the other, each with its own teacher in the loop, in float32.

    Args:
        model: Networks with loaded teachers; the students are trained in place.
        loader: Batches of good images.
        transform: What normalises a batch of images.
        epochs: Passes over the images for each student.
        both: Run the other teacher as well, and leave its features alone.

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
                features = model.teacher_features(images) if both else {name: model.teachers[name](images)}
                loss = loss_of({name: features[name]}, {name: student(images)})[name]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
            seconds[epoch] += _now() - start
    return [Epoch(float(value), 0.0) for value in seconds]


def train(name: str, settings: argparse.Namespace, *callbacks: Callback) -> list[Epoch]:
    """Train a variant from the same seed on the same images as every other.

    Args:
        name: One of :data:`NAMES`.
        settings: The parsed command line.
        callbacks: More callbacks for the Engine.

    Returns:
        Time by epoch.
    """
    gc.collect()  # what the variant before left is not to be collected in this one's time
    lightning.seed_everything(0, verbose=False)
    datamodule = prepare_data(settings)
    datamodule.train_batch_size = settings.batch
    if name in {OFFICIAL, BOTH}:
        return _train_officially(datamodule, settings, both=name == BOTH)
    arguments = ARGUMENTS.get(name, {})
    model, needed = build(name.partition(":")[0], settings.teacher_weights, settings.image_size, **arguments)
    timer = EpochTimer()
    # a cache folder of its own: a file of features that an earlier run left would spare the first epoch its teachers
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {CACHE_VARIABLE: folder}):
        engine = Engine(
            [timer, *needed, *callbacks],
            default_root_dir=folder,
            accelerator=settings.device,
            devices=1,
            max_epochs=settings.epochs,
            precision="bf16-mixed" if name == BFLOAT16 else "32-true",
            limit_val_batches=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with without(name):
            engine.fit(model=model, datamodule=datamodule)
    return timer.epochs


def _train_officially(datamodule: AnomalibDataModule, settings: argparse.Namespace, both: bool) -> list[Epoch]:
    size = (settings.image_size, settings.image_size)
    datamodule.train_data.augmentations = Resize(size, antialias=True)  # where the Engine puts the transform's resize
    loader, transform = datamodule.train_dataloader(), default_transform(size)
    model = MixedTeacherModel()
    model.load_teachers(settings.teacher_weights)
    if settings.teacher_weights == "random":
        images = torch.cat([transform(batch.image) for batch in sample_batches(loader, STATISTICS_IMAGES)])
        for teacher in model.teachers.values():
            teacher.set_normalization_statistics(images)
    return train_officially(model.to(settings.device), loader, transform, settings.epochs, both)


def table(measured: Mapping[str, Sequence[Sequence[Epoch]]]) -> str:
    """Format times as ratios to the official recipe's in the same round.

    Args:
        measured: Epochs by round, by variant; two epochs or more a round.

    Returns:
        Markdown table: the median over rounds and their range of each variant's median epoch from the second on, for
        each official variant that was measured; the share of its time behind the last batch; and a row for the epoch
        that fills the cache.
    """
    references = [name for name in (OFFICIAL, BOTH) if name in measured]
    heads = [part for name in references for part in (f"epoch / {_label(name)}", "range")]
    head = ["variant", *heads, "behind the last batch"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, rounds in measured.items():
        rows = {_label(name): [epochs[1:] for epochs in rounds]}
        if name == OURS:
            rows[f"{OURS}, first epoch"] = [epochs[:1] for epochs in rounds]
        for label, chosen in rows.items():
            cells = []
            for reference in references:
                pairs = zip(chosen, measured[reference], strict=True)
                ratios = np.array([_median(ours) / _median(theirs[1:]) for ours, theirs in pairs])
                cells += [f"{np.median(ratios):.2f}", f"{ratios.min():.2f} to {ratios.max():.2f}"]
            tail = np.median([epoch.tail / epoch.seconds for epochs in chosen for epoch in epochs])
            lines.append(_row([label, *cells, f"{tail:.0%}"]))
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
    shares = [average.self_cpu_time_total / 1e6 / seconds for average in most]
    lines = ["| operator | share of the loop | calls |", "| --- " * 3 + "|"]
    lines += [f"| {a.key} | {share:.1%} | {a.count} |" for a, share in zip(most, shares, strict=True)]
    return "\n".join([*lines, f"| everything else | {1 - sum(shares):.1%} | |"])


def _head(settings: argparse.Namespace, measured: Mapping[str, Sequence[Sequence[Epoch]]], command: str) -> str:
    device = "" if settings.device == "cpu" else f", {torch.cuda.get_device_name()}"
    date, memory = datetime.now().astimezone().isoformat(timespec="seconds"), peak_memory()
    lines = [
        f"    {command}\n",
        f"- {date}, anomalib-mixedteacher {__version__}, torch {torch.__version__}",
        f"- {processor_name()}, {available_cores()} cores, {torch.get_num_threads()} threads{device}",
        f"- {settings.images} images, {settings.image_size} pixels, batch {settings.batch}, {settings.epochs} epochs",
    ]
    if OFFICIAL in measured:
        seconds = float(np.median([_median(epochs[1:]) for epochs in measured[OFFICIAL]]))
        lines += [f"- the official recipe trains both students on {settings.images / seconds:.1f} images/s"]
    if memory:
        lines += [f"- peak resident memory of the process, all its variants together: {memory:.0f} MB"]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _label(name: str) -> str:
    return name.replace(":", ", ").replace("_", " ")


def _median(epochs: Sequence[Epoch]) -> float:
    return float(np.median([epoch.seconds for epoch in epochs]))


def _now() -> float:
    """Read the clock when an accelerator has done its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="training_cost", description=__doc__)
    parser.add_argument("--data", choices=["MagneticTile", "SyntheticTextures"], default="SyntheticTextures")
    parser.add_argument("--root", help="folder of the magnetic tiles")
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels")
    parser.add_argument("--images", type=int, default=64, help="good training images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each variant in a round, 2 or more")
    parser.add_argument("--teacher-weights", default="random", metavar="SOURCE")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=NAMES, metavar="VARIANT", help=", ".join(NAMES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--profile", action="store_true", help=f"also profile {OURS}'s loop, by a training of its own")
    settings = parser.parse_args(arguments)
    if settings.epochs < 2:
        parser.error("The first epoch fills the cache and does not count: give --epochs 2 or more.")
    measured: dict[str, list[list[Epoch]]] = {name: [] for name in settings.variants}
    try:
        for turn in range(settings.rounds):
            first = turn % len(measured)
            for name in (list(measured) * 2)[first : first + len(measured)]:
                measured[name].append(train(name, settings))
        given = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "-m", f"{__package__}.training_cost", *given])
        print(f"{_head(settings, measured, command)}\n\n{table(measured)}")
        if settings.profile:
            profiler = LoopProfiler()
            train(OURS, settings, profiler)
            print(f"\n{operator_table(profiler.profile.key_averages(), profiler.seconds)}")
    except MixedTeacherError as error:
        print(f"training_cost: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
