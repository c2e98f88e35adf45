"""What an epoch of training costs, against the official recipe's.

python benchmarks/training_cost.py --images 96 --rounds 3

The official recipe trains the students one after the other, each with its own teacher in the loop, so its epoch is two
passes over the images; batch normalisation is frozen from the second epoch on, as the official code has it. Everything
else is anomalib's Engine as a user runs it, without validation. Variants run in turn, another one first in each round;
epochs count from the second on, the first of the cache for itself.
"""

import gc
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from anomalib_mixedteacher.benchmark.models import build, build_data
from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.components.maps import normalized_distance
from anomalib_mixedteacher.components.teacher import set_normalization_statistics
from common import first_cells, machine, table

OFFICIAL, OURS = "official recipe", "MixedTeacher"
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {  # model, its arguments, the trainer's precision
    OFFICIAL: ("MixedTeacher", {"architecture": "paper"}, "32-true"),
    "MixedTeacher, architecture=paper": ("MixedTeacher", {"architecture": "paper"}, "32-true"),
    OURS: ("MixedTeacher", {}, "32-true"),
    "MixedTeacher, feature_cache=0": ("MixedTeacher", {"feature_cache": 0}, "32-true"),
    "MixedTeacher, bf16-mixed": ("MixedTeacher", {}, "bf16-mixed"),
    "Stfpm, layers 1 and 2": ("Stfpm", {"layers": ["layer1", "layer2"]}, "32-true"),
}
LEARNING_RATE = 4e-4


def main(
    data: str = "SyntheticTextures",
    images: int = 64,
    image_size: int = 256,
    epochs: int = 3,
    rounds: int = 3,
    variants: Sequence[str] = tuple(VARIANTS),
    teacher_weights: str = "random",
) -> None:
    """Print a table of ratios to the official recipe's epoch: median over rounds, and their range.

    Args:
        data: A folder of images, or the class of a datamodule.
        images: Good training images.
        image_size: Side of the images in pixels.
        epochs: Epochs of each variant in a round, 2 or more.
        rounds: Trainings of each variant.
        variants: What to train.
        teacher_weights: Where the teachers' weights come from.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name in [*variants[turn % len(variants) :], *variants[: turn % len(variants)]]:
            gc.collect()  # what the variant before left is not to be collected in this one's time
            model, arguments, precision = VARIANTS[name]
            entry = {"class_path": model, "init_args": arguments, "batch": 8}
            (cell,) = first_cells([entry], data, image_size, teacher_weights)
            lightning.seed_everything(0, verbose=False)
            datamodule = _subset(cell, images)
            run = _officially if name == OFFICIAL else _as_users
            seconds[name].append(run(cell, datamodule, epochs, precision))
    reference = np.array([np.median(of_round[1:]) for of_round in seconds.get(OFFICIAL, seconds[variants[0]])])
    rows = []
    for name, measured in seconds.items():
        parts = {name: [float(np.median(of_round[1:])) for of_round in measured]}
        if name == OURS:
            parts[f"{name}, first epoch"] = [of_round[0] for of_round in measured]
        for label, values in parts.items():
            ratios = np.array(values) / reference
            rows.append([label, f"{np.median(ratios):.2f}", f"{ratios.min():.2f} to {ratios.max():.2f}"])
    print(f"{images} images, {image_size} pixels, batch 8, {torch.get_num_threads()} threads, {machine()}")
    print(f"{variants[0]}: {images / np.median(reference):.1f} images/s\n")
    print(table(["variant", f"epoch / {variants[0]}", "range"], rows))


def _subset(cell: Cell, images: int) -> AnomalibDataModule:
    """Set up the data with so many good training images; given as the trainer gives it, it is not set up again."""
    datamodule = build_data(cell)
    datamodule.prepare_data()
    datamodule.setup(TrainerFn.FITTING)
    count = len(datamodule.train_data)
    if count > images:
        chosen = torch.linspace(0, count - 1, images).round().int().tolist()
        datamodule.train_data = datamodule.train_data.subsample(chosen)
    return datamodule


def _as_users(cell: Cell, datamodule: AnomalibDataModule, epochs: int, precision: str) -> list[float]:
    """Train with the Engine; an epoch's time goes up to the start of the next one, or the training's end."""
    model, callbacks = build(cell)
    starts: list[float] = []
    timer = LambdaCallback(
        on_train_epoch_start=lambda *_: starts.append(time.perf_counter()),
        on_train_end=lambda *_: starts.append(time.perf_counter()),
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            [timer, *callbacks],
            default_root_dir=folder,
            accelerator="cpu",
            max_epochs=epochs,
            limit_val_batches=0,
            precision=precision,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        engine.fit(model=model, datamodule=datamodule)
    return np.diff(starts).tolist()


def _officially(cell: Cell, datamodule: AnomalibDataModule, epochs: int, precision: str) -> list[float]:
    """Train the students one after the other, each with its own teacher in the loop, in float32."""
    del precision
    model: Any = build(cell)[0]
    transform, loader = model.pre_processor.transform, datamodule.train_dataloader()
    sample = transform(next(iter(loader)).image)
    seconds = np.zeros(epochs)
    pairs = zip(model.model.teachers.values(), model.model.students.values(), strict=True)
    for teacher, student in pairs:
        teacher.load(cell.teacher_weights)
        if cell.teacher_weights == "random":
            set_normalization_statistics(teacher, sample)
        optimizer = Adam(student.parameters(), lr=LEARNING_RATE)
        scheduler = OneCycleLR(optimizer, max_lr=10 * LEARNING_RATE, total_steps=epochs * len(loader))
        for epoch in range(epochs):
            start = time.perf_counter()
            student.train(epoch == 0)
            for batch in loader:
                images = transform(batch.image)
                distances = [normalized_distance(t, s) for t, s in zip(teacher(images), student(images), strict=True)]
                optimizer.zero_grad()
                torch.stack([distance.mean() for distance in distances]).mean().backward()
                optimizer.step()
                scheduler.step()
            seconds[epoch] += time.perf_counter() - start
    return seconds.tolist()


if __name__ == "__main__":
    auto_cli(main)
