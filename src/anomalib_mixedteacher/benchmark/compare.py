"""Train models on one split with the same teacher weights, and print their AUROC as a table.

Run ``python -m anomalib_mixedteacher.benchmark.compare --help``.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from anomalib_mixedteacher import MagneticTile, MixedTeacher, SyntheticTextures, __version__
from anomalib_mixedteacher.benchmark.peers import build_peer, load_peer_teacher
from anomalib_mixedteacher.benchmark.scores import predict, summarize
from anomalib_mixedteacher.components.training_data import sample_images
from anomalib_mixedteacher.errors import MixedTeacherError

STATISTICS_IMAGES = 64
# anomalib's example configurations: batch 32 for Stfpm and Patchcore; 1 % coreset, since 10 % takes hours on a CPU
BATCH = {"MixedTeacher": 8}
ARGUMENTS: dict[str, dict[str, Any]] = {"Patchcore": {"coreset_sampling_ratio": 0.01}}


class _PeerTeacher(Callback):
    """Loads a peer's teacher when its training data is known."""

    def __init__(self, source: str) -> None:
        self.source = source

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, AnomalibModule)
        transform = cast("PreProcessor", pl_module.pre_processor).transform
        assert transform is not None
        batches = sample_images(cast("DataLoader", trainer.train_dataloader), STATISTICS_IMAGES)
        images = torch.cat([transform(batch.to(pl_module.device)) for batch in batches])
        load_peer_teacher(pl_module, self.source, images)


def run(
    name: str, datamodule: AnomalibDataModule, settings: argparse.Namespace, seed: int, **arguments: Any
) -> list[dict[str, Any]]:
    """Train one model and evaluate it; a MixedTeacher once for each fusion asked for, since training needs none.

    Args:
        name: ``"MixedTeacher"``, ``"Stfpm"`` or ``"Patchcore"``.
        datamodule: The data; its training batch size is set to the model's own.
        settings: The parsed command line.
        seed: Seeds weights and batches.
        arguments: More arguments of the model.

    Returns:
        Metrics, seconds of training and the process's peak memory, with what they were measured on.
    """
    lightning.seed_everything(seed)
    callbacks: list[Callback] = []
    size = (settings.image_size, settings.image_size)
    if name == "MixedTeacher":
        pre_processor = MixedTeacher.configure_pre_processor(size)
        model: AnomalibModule = MixedTeacher(settings.teacher_weights, pre_processor=pre_processor, **arguments)
    else:
        arguments = {**ARGUMENTS.get(name, {}), **arguments}
        pre_processor = AnomalibModule.configure_pre_processor(size)
        model = build_peer(name, pre_processor=pre_processor, **arguments)
        callbacks.append(_PeerTeacher(settings.teacher_weights))
    datamodule.train_batch_size = BATCH.get(name, 32)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            callbacks,
            default_root_dir=folder,
            max_epochs=1 if name == "Patchcore" else settings.epochs,
            limit_val_batches=0,
            enable_progress_bar=settings.progress,
            enable_model_summary=False,
        )
        engine.fit(model=model, datamodule=datamodule)
    seconds = time.perf_counter() - start
    common = {
        "data": datamodule.name,
        "image_size": settings.image_size,
        "teacher_weights": settings.teacher_weights,
        "epochs": settings.epochs,
        "seed": seed,
        "version": __version__,
    }
    rows = []
    for fusion in settings.fusions if isinstance(model, MixedTeacher) else [None]:
        if fusion is not None:
            arguments = {**arguments, "fusion": fusion}
            cast("MixedTeacher", model).model.anomaly_map_generator.fusion = fusion
        metrics = summarize(predict(model.to("cpu"), datamodule))
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        rows.append({"model": name, "arguments": arguments, **common, **metrics, "train_seconds": round(seconds)})
        rows[-1]["process_peak_gib"] = peak
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format results as a Markdown table, one row per run."""
    skipped = {"arguments", "data", "image_size", "teacher_weights", "epochs", "version"}
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in skipped))
    lines = ["| " + " | ".join(keys) + " |", "| " + " | ".join("---" for _ in keys) + " |"]
    for row in rows:
        label = {**row, "model": " ".join([row["model"], *(f"{k}={v}" for k, v in row["arguments"].items())])}
        cells = [f"{label[k]:.3f}" if isinstance(label.get(k), float) else str(label.get(k, "")) for k in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="compare", description=__doc__)
    parser.add_argument("--data", choices=["MagneticTile", "SyntheticTextures"], default="SyntheticTextures")
    parser.add_argument("--root", help="folder of the magnetic tiles")
    parser.add_argument(
        "--models", nargs="+", default=["MixedTeacher", "Stfpm", "Patchcore"], metavar="MODEL[:key=value,...]"
    )
    parser.add_argument("--teacher-weights", default="imagenet")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100, help="for the models that are trained in epochs")
    parser.add_argument("--fusions", nargs="+", default=["normalized_product"], help="of MixedTeacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    parser.add_argument("--output", type=Path, help="append each result to this file, as a line of JSON")
    settings = parser.parse_args()
    rows = []
    try:
        for seed in settings.seeds:
            for model in settings.models:
                name, _, pairs = model.partition(":")
                arguments = {k: json.loads(v) for k, v in (pair.split("=") for pair in pairs.split(",") if pair)}
                datamodule = (
                    MagneticTile(root=settings.root, seed=seed)
                    if settings.data == "MagneticTile"
                    else SyntheticTextures(seed=seed)
                )
                for row in run(name, datamodule, settings, seed, **arguments):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    if settings.output:
                        with settings.output.open("a") as file:
                            file.write(json.dumps(row) + "\n")
    except MixedTeacherError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
