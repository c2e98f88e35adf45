"""Train models on one split with the same teacher weights, and print their AUROC as a table.

Run ``python -m anomalib_mixedteacher.benchmark.compare --help``.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from itertools import product
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
from anomalib_mixedteacher.errors import ConfigurationError, MixedTeacherError

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


def build(name: str, weights: str, image_size: int, **arguments: Any) -> tuple[AnomalibModule, list[Callback]]:
    """Build a model whose teacher gets its weights when training starts.

    Args:
        name: ``"MixedTeacher"``, ``"Stfpm"`` or ``"Patchcore"``.
        weights: Where the teachers' weights come from.
        image_size: Side to which the model resizes images, in pixels.
        arguments: More arguments of the model.

    Returns:
        The model, and the callbacks that its trainer needs.
    """
    size = (image_size, image_size)
    if name == "MixedTeacher":
        return MixedTeacher(weights, pre_processor=MixedTeacher.configure_pre_processor(size), **arguments), []
    pre_processor = AnomalibModule.configure_pre_processor(size)
    return build_peer(name, pre_processor=pre_processor, **arguments), [_PeerTeacher(weights)]


def run(
    name: str, datamodule: AnomalibDataModule, weights: str, settings: argparse.Namespace, seed: int, **arguments: Any
) -> list[dict[str, Any]]:
    """Train one model and evaluate it; a MixedTeacher once for each fusion asked for, since training needs none.

    Args:
        name: ``"MixedTeacher"``, ``"Stfpm"`` or ``"Patchcore"``.
        datamodule: The data; its training batch size is set to the model's own.
        weights: Where the teachers' weights come from.
        settings: The parsed command line.
        seed: Seeds weights and batches.
        arguments: More arguments of the model.

    Returns:
        Metrics, seconds of training and the process's peak memory, with what they were measured on.
    """
    lightning.seed_everything(seed, verbose=False)
    common = describe(datamodule.name, weights, settings, seed)
    layers = {"layers": settings.peer_layers} if settings.peer_layers and name != "MixedTeacher" else {}
    peer = {**ARGUMENTS.get(name, {}), **layers}
    model, callbacks = build(name, weights, settings.image_size, **{**peer, **arguments})
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
    rows = []
    for fusion in settings.fusions if isinstance(model, MixedTeacher) else [None]:
        if fusion is not None:
            arguments = {**arguments, "fusion": fusion}
            cast("MixedTeacher", model).model.anomaly_map_generator.fusion = fusion
        metrics = summarize(predict(model.to("cpu"), datamodule), settings.pool)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        rows.append({"model": name, "arguments": arguments, **common, **metrics})
        rows[-1] |= {"train_seconds": round(seconds), "process_peak_gib": peak, "version": __version__}
    return rows


def describe(data: str, weights: str, settings: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Give everything but model and metrics that identifies a row."""
    return {
        "data": data,
        "image_size": settings.image_size,
        "teacher_weights": weights,
        "epochs": settings.epochs,
        "peer_layers": settings.peer_layers,
        "seed": seed,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format results as a Markdown table: one line a model and teacher, mean and standard deviation over seeds."""
    metrics = list(dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, float) and "gib" not in k))
    lines = ["| " + " | ".join(["model", "teachers", "seeds", *metrics]) + " |", "| --- " * (len(metrics) + 3) + "|"]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        model = " ".join([row["model"], *(f"{key}={value}" for key, value in row["arguments"].items())])
        cells.setdefault((model, row["teacher_weights"]), []).append(row)
    for (model, weights), group in cells.items():
        values = [torch.tensor([row[metric] for row in group if metric in row]) for metric in metrics]
        texts = [_spread(value) for value in values]
        lines.append("| " + " | ".join([model, Path(weights).name, str(len(group)), *texts]) + " |")
    return "\n".join(lines)


def _spread(values: torch.Tensor) -> str:
    if not len(values):
        return ""
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def _finished(output: Path | None) -> list[dict[str, Any]]:
    """Rows that an earlier, interrupted call left behind."""
    if output is None or not output.exists():
        return []
    return [json.loads(line) for line in output.read_text().splitlines() if line]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="compare", description=__doc__)
    parser.add_argument("--data", choices=["MagneticTile", "SyntheticTextures"], default="SyntheticTextures")
    parser.add_argument("--root", help="folder of the magnetic tiles")
    parser.add_argument(
        "--models", nargs="+", default=["MixedTeacher", "Stfpm", "Patchcore"], metavar="MODEL[:key=value,...]"
    )
    parser.add_argument("--teacher-weights", nargs="+", default=["imagenet"], metavar="SOURCE")
    parser.add_argument("--peer-layers", nargs="+", help="layers of Stfpm and Patchcore; texture teachers have two")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100, help="for the models that are trained in epochs")
    parser.add_argument("--fusions", nargs="+", default=["normalized_product"], help="of MixedTeacher")
    parser.add_argument("--pool", nargs="+", default=[], help="kinds of defect to take together in one more column")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    parser.add_argument("--output", type=Path, help="file to append results to; what it holds is not run again")
    settings = parser.parse_args()
    earlier = _finished(settings.output)
    rows: list[dict[str, Any]] = []
    try:
        for seed, weights, model in product(settings.seeds, settings.teacher_weights, settings.models):
            name, _, pairs = model.partition(":")
            arguments = _arguments(pairs)
            datamodule = (
                MagneticTile(root=settings.root, seed=seed)
                if settings.data == "MagneticTile"
                else SyntheticTextures(seed=seed)
            )
            wanted = {"model": name, **describe(datamodule.name, weights, settings, seed)}
            results = _results(earlier, wanted, arguments, settings)
            if not results:
                results = run(name, datamodule, weights, settings, seed, **arguments)
                _append(results, settings.output)
            rows += results
    except MixedTeacherError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(markdown(rows))
    return 0


def _results(
    rows: list[dict[str, Any]], wanted: dict[str, Any], arguments: dict[str, Any], settings: argparse.Namespace
) -> list[dict[str, Any]]:
    """Find a run's rows among finished ones: one a fusion for MixedTeacher, with the pooled kinds; all or none."""
    fusions = settings.fusions if wanted["model"] == "MixedTeacher" else [None]
    cells = [arguments | ({"fusion": fusion} if fusion else {}) for fusion in fusions]
    pool = {"+".join(settings.pool)} if settings.pool else set()
    fitting = [row for row in rows if pool <= row.keys() and all(row.get(k) == v for k, v in wanted.items())]
    found = [next((row for row in fitting if row["arguments"] == cell), None) for cell in cells]
    return [row for row in found if row] if all(found) else []


def _arguments(pairs: str) -> dict[str, Any]:
    """Parse ``key=value,...`` with values in JSON."""
    try:
        arguments = {key: json.loads(value) for key, value in (pair.split("=") for pair in pairs.split(",") if pair)}
    except ValueError as error:
        msg = f'Cannot read the arguments {pairs!r}: write key=value,... with strings in quotes, as in key="text".'
        raise ConfigurationError(msg) from error
    if "fusion" in arguments:
        msg = "Give fusions as --fusions: one training serves them all."
        raise ConfigurationError(msg)
    return arguments


def _append(rows: list[dict[str, Any]], output: Path | None) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    print(lines, end="", flush=True)
    if output:
        with output.open("a") as file:
            file.write(lines)


if __name__ == "__main__":
    raise SystemExit(main())
