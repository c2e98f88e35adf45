"""The models that the speed benchmark measures: trained, exported, and kept for the next call."""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, EfficientAd
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_mixedteacher import MagneticTile, SyntheticTextures, __version__
from anomalib_mixedteacher.benchmark.build import build
from anomalib_mixedteacher.benchmark.costs import export_one
from anomalib_mixedteacher.benchmark.efficient_ad import SMALLEST_SIDE
from anomalib_mixedteacher.benchmark.exported_file import exported_path
from anomalib_mixedteacher.benchmark.plan import usual_batch
from anomalib_mixedteacher.errors import ConfigurationError

PRECISIONS = {
    "MixedTeacher": None,
    "MixedTeacher-FP16": CompressionType.FP16,
    "MixedTeacher-INT8": CompressionType.INT8_PTQ,
}
MODELS = (*PRECISIONS, "Stfpm", "Patchcore", "EfficientAd")
UNTRAINED = "EfficientAd"
# anomalib's own defaults, which build_peer has not
ARGUMENTS: dict[str, dict[str, Any]] = {"Patchcore": {"backbone": "wide_resnet50_2", "coreset_sampling_ratio": 0.1}}
_KEPT = ("data", "root", "image_size", "images", "epochs", "teacher_weights")


def prepare_data(settings: argparse.Namespace) -> AnomalibDataModule:
    """Set up the data, with so many good training images as asked for.

    Args:
        settings: ``data``, ``root``, ``image_size`` and ``images`` of the command line.

    Returns:
        A datamodule that was set up; no model has put its transform into it.

    Raises:
        ConfigurationError: If the folder of the magnetic tiles is not given.
    """
    if settings.data == "MagneticTile" and settings.root is None:
        msg = "The magnetic tiles are not part of this package: give their folder as --root."
        raise ConfigurationError(msg)
    datamodule: AnomalibDataModule = (
        MagneticTile(root=settings.root)
        if settings.data == "MagneticTile"
        else SyntheticTextures(image_size=settings.image_size, num_train=settings.images)
    )
    datamodule.prepare_data()
    datamodule.setup(TrainerFn.FITTING)  # given as the trainer gives it, or the trainer would set up all images again
    count = len(datamodule.train_data)
    if count > settings.images:
        chosen = torch.linspace(0, count - 1, settings.images).round().int().tolist()
        datamodule.train_data = datamodule.train_data.subsample(chosen)
    return datamodule


def prepare_models(settings: argparse.Namespace) -> dict[str, Path]:
    """Train and export the models that the output folder does not hold yet.

    Args:
        settings: The parsed command line.

    Returns:
        Path of each model's ``.xml`` file, by name.

    Raises:
        ConfigurationError: If the folder holds models made with other settings, or a model cannot take the size.
    """
    names: list[str] = settings.models
    if UNTRAINED in names and settings.image_size < SMALLEST_SIDE:
        msg = (
            f"EfficientAd takes images of {SMALLEST_SIDE} pixels or more: raise --image-size, or leave it out of "
            "--models."
        )
        raise ConfigurationError(msg)
    if names:
        check_settings(settings)
    missing = [name for name in names if not exported_path(settings.output / name).exists()]
    variants = [name for name in missing if name in PRECISIONS]
    if variants:
        _train_and_export("MixedTeacher", variants, settings)
    for name in missing:
        if name not in PRECISIONS:
            _train_and_export(name, [name], settings)
    return {name: exported_path(settings.output / name) for name in names}


def check_settings(settings: argparse.Namespace) -> None:
    """Write what decides the models into the output folder, or compare it with what is there.

    Args:
        settings: The parsed command line.

    Raises:
        ConfigurationError: If the folder holds models made with other settings.
    """
    wanted = {key: getattr(settings, key) for key in _KEPT} | {"version": __version__}
    path = settings.output / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(wanted, indent=2) + "\n")
        return
    found = json.loads(path.read_text())
    differing = [
        f"{key}={found.get(key)!r} instead of {value!r}" for key, value in wanted.items() if found.get(key) != value
    ]
    if differing:
        msg = f"{settings.output} holds models made with {', '.join(differing)}: give another folder as --output."
        raise ConfigurationError(msg)


def _train_and_export(model_name: str, names: list[str], settings: argparse.Namespace) -> None:
    print(f"Preparing {', '.join(names)} ...", file=sys.stderr, flush=True)
    lightning.seed_everything(0, verbose=False)
    datamodule = prepare_data(settings)
    model = _untrained_efficient_ad(settings) if model_name == UNTRAINED else _train(model_name, datamodule, settings)
    for name in names:
        _export(model, name, datamodule, settings)
    del model
    gc.collect()  # Patchcore's features would otherwise be in the way of the measurements


def _train(name: str, datamodule: AnomalibDataModule, settings: argparse.Namespace) -> AnomalibModule:
    model, callbacks = build(name, settings.teacher_weights, settings.image_size, **ARGUMENTS.get(name, {}))
    datamodule.train_batch_size = usual_batch(name)
    epochs = 1 if name == "Patchcore" else settings.epochs
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            callbacks,
            default_root_dir=folder,
            max_epochs=epochs,
            check_val_every_n_epoch=epochs,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        engine.fit(model=model, datamodule=datamodule)
    return model.to("cpu").eval()


def _untrained_efficient_ad(settings: argparse.Namespace) -> AnomalibModule:
    """Build EfficientAd without its downloads; its speed does not depend on its weights."""
    size = (settings.image_size, settings.image_size)
    model = EfficientAd(pre_processor=EfficientAd.configure_pre_processor(size))
    # Statistics such as training finds: while they are 0 the model leaves its normalisations out.
    with torch.no_grad():
        for name, value in {"mean": 0.1, "std": 2.0}.items():
            model.model.mean_std[name].fill_(value)
        for name, value in {"qa_st": 0.1, "qb_st": 0.9, "qa_ae": 0.1, "qb_ae": 0.9}.items():
            model.model.quantiles[name].fill_(value)
    return model.eval()


def _export(model: AnomalibModule, name: str, datamodule: AnomalibDataModule, settings: argparse.Namespace) -> None:
    # The table is to show what INT8 costs, so nothing is refused here.
    more: dict[str, Any] = {"max_drop": 1.0} if name in PRECISIONS else {}
    more |= {"compression_type": PRECISIONS.get(name), "datamodule": datamodule}
    export_one(model, settings.output / name, settings.image_size, **more)
