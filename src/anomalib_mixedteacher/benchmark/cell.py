"""One cell of the comparison: a model trained and evaluated on a data set, with one seed."""

import argparse
import copy
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine

from anomalib_mixedteacher import MagneticTile, SyntheticTextures, __version__
from anomalib_mixedteacher.benchmark.arguments import parse_arguments
from anomalib_mixedteacher.benchmark.build import build
from anomalib_mixedteacher.benchmark.costs import count_stored, export_one
from anomalib_mixedteacher.benchmark.exported_file import exported_path
from anomalib_mixedteacher.benchmark.plan import usual_batch
from anomalib_mixedteacher.benchmark.scores import predict, region_overlap, summarize
from anomalib_mixedteacher.data.textures import FAMILIES
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.plugin import MODELS

Row = dict[str, Any]

# 1 % coreset, since anomalib's 10 % takes hours on a CPU
ARGUMENTS: dict[str, dict[str, Any]] = {"Patchcore": {"coreset_sampling_ratio": 0.01}}


def run(name: str, data: str, weights: str, settings: argparse.Namespace, seed: int, **arguments: Any) -> list[Row]:
    """Train one model and evaluate it, once for each kind of map asked for, since training does not depend on them.

    Args:
        name: As for :func:`~.build.build`.
        data: As for :func:`load_data`.
        weights: Where the teachers' weights come from.
        settings: The parsed command line.
        seed: Seeds split, weights and batches.
        arguments: More arguments of the model.

    Returns:
        Metrics, seconds of training and the process's peak memory, with what they were measured on.
    """
    lightning.seed_everything(seed, verbose=False)
    datamodule = load_data(data, settings.root, seed)
    chosen = {**ARGUMENTS.get(name, {}), **_layers(name, settings.peer_layers), **arguments}
    model, callbacks = build(name, weights, settings.image_size, **chosen)
    datamodule.train_batch_size = usual_batch(name)
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
    model = model.to("cpu")
    measured = {"train_seconds": round(seconds), "stored_numbers": count_stored(model)}
    rows = []
    networks: Any = model.model
    for chosen in maps_of(name, settings):
        model.model = copy.deepcopy(networks) if chosen else networks
        for key, value in chosen.items():
            parts = (model.model.anomaly_map_generator, model.model)
            part = next((part for part in parts if hasattr(part, key)), None)
            if part is None:
                msg = f"The maps of {name} have no {key}: give an attribute of its anomaly map."
                raise ConfigurationError(msg)
            setattr(part, key, value)
        predictions = predict(model, datamodule)
        metrics = summarize(predictions, settings.pool)
        if predictions.masks.any():
            metrics["PRO"] = region_overlap(predictions)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        described = describe(data, weights, settings, seed)
        rows.append({"model": name, "arguments": arguments | chosen, **described, **metrics, **measured})
        rows[-1]["process_peak_gib"] = peak
    model.model = networks
    if settings.costs and not exported_path(settings.costs / name).exists():
        export_one(model.eval(), settings.costs / name, settings.image_size)
    return rows


def load_data(data: str, root: str | None, seed: int) -> AnomalibDataModule:
    """Make the datamodule of a data set.

    Args:
        data: ``"MagneticTile"``, a category of the synthetic textures, or ``"SyntheticTextures"`` for the first one.
        root: Folder of the magnetic tiles.
        seed: Seeds what is drawn or split.

    Raises:
        ConfigurationError: If the folder of the magnetic tiles is not given.
    """
    if data != "MagneticTile":
        return SyntheticTextures(category=data if data in FAMILIES else next(iter(FAMILIES)), seed=seed)
    if root is None:
        msg = "The magnetic tiles are not part of this package: give their folder as --root."
        raise ConfigurationError(msg)
    return MagneticTile(root=root, seed=seed)


def maps_of(name: str, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """List the arguments of the anomaly map that a model is evaluated with."""
    if name == "MixedTeacher":
        return [{"fusion": fusion} for fusion in settings.fusions]
    return [parse_arguments(pairs) for pairs in settings.maps] if name in MODELS and settings.maps else [{}]


def _layers(name: str, layers: Sequence[str] | None) -> dict[str, Any]:
    """Choose the layers of the models that have the peers' teacher."""
    if not layers or name in {"MixedTeacher", "Mkd"}:
        return {}
    return {"layers": [int(layer.removeprefix("layer")) for layer in layers] if name == "Msfd" else list(layers)}


def describe(data: str, weights: str, settings: argparse.Namespace, seed: int) -> Row:
    """Give everything but model and metrics that identifies a row, the package's version included."""
    return {
        "data": data,
        "root": str(Path(settings.root).resolve()) if data == "MagneticTile" and settings.root else None,
        "image_size": settings.image_size,
        "teacher_weights": weights,
        "epochs": settings.epochs,
        "peer_layers": settings.peer_layers,
        "seed": seed,
        "version": __version__,
    }
