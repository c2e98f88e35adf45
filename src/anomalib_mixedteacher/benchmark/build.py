"""Models and datamodules of the benchmarks, built so that nothing is fetched unless ImageNet weights were asked for."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import ValSplitMode
from anomalib.models import AnomalibModule, EfficientAd, get_model, list_models
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from anomalib_mixedteacher.benchmark.efficient_ad import SMALLEST_SIDE, OfflineEfficientAd
from anomalib_mixedteacher.benchmark.peers import PEERS, build_peer, load_peer_teacher
from anomalib_mixedteacher.components.distillation_module import STATISTICS_IMAGES
from anomalib_mixedteacher.components.training_data import sample_batches
from anomalib_mixedteacher.data._tiles import find_tiles
from anomalib_mixedteacher.data.magnetic_tile import DEFAULT_ROOT
from anomalib_mixedteacher.errors import ConfigurationError, MixedTeacherError
from anomalib_mixedteacher.plugin import MODELS, public

HELD_OUT = 0.2  # share of the good training images kept for validation, as the official recipe has it


class _PeerTeacher(Callback):
    """Loads a peer's teacher when its training data is known."""

    def __init__(self, source: str) -> None:
        self.source = source

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, AnomalibModule)
        transform = cast("PreProcessor", pl_module.pre_processor).transform
        assert transform is not None
        batches = sample_batches(cast("DataLoader", trainer.train_dataloader), STATISTICS_IMAGES)
        images = torch.cat([transform(batch.image.to(pl_module.device)) for batch in batches])
        load_peer_teacher(pl_module, self.source, images)


def build(class_path: str, weights: str, image_size: int, **arguments: Any) -> tuple[AnomalibModule, list[Callback]]:
    """Build a model whose teacher gets its weights when training starts.

    Args:
        class_path: Name of a model that anomalib knows, with or without its package.
        weights: Where the teachers' weights come from. Models of anomalib's other than the peers have no such teacher,
            and need ``imagenet``.
        image_size: Side to which the model resizes images, in pixels.
        arguments: More arguments of the model.

    Returns:
        The model, and the callbacks that its trainer needs.

    Raises:
        ConfigurationError: If there is no such model, or it cannot have such weights, such images or such arguments.
    """
    with _refusing_arguments(class_path):
        return _build(class_path, weights, image_size, **arguments)


def _build(class_path: str, weights: str, image_size: int, **arguments: Any) -> tuple[AnomalibModule, list[Callback]]:
    name, size = class_path.rpartition(".")[2], (image_size, image_size)
    if name in MODELS:
        model: Any = public(name)
        return model(weights, pre_processor=model.configure_pre_processor(size), **arguments), []
    if name in PEERS:
        pre_processor = AnomalibModule.configure_pre_processor(size)
        return build_peer(name, pre_processor=pre_processor, **arguments), [_PeerTeacher(weights)]
    if name == "EfficientAd":
        return _build_efficient_ad(weights, image_size, **arguments), []
    if weights != "imagenet":
        msg = (
            f"{name} has no teacher that could take {weights} weights: benchmark it with teacher_weights: imagenet, or "
            "leave it out."
        )
        raise ConfigurationError(msg)
    check_model(class_path)
    found = get_model(class_path, **arguments)
    found.pre_processor = type(found).configure_pre_processor(size)
    return found, []


@contextmanager
def _refusing_arguments(class_path: str) -> Iterator[None]:
    """Say in a sentence that a constructor does not take its arguments."""
    try:
        yield
    except MixedTeacherError:
        raise
    except (TypeError, ValueError) as error:
        name = class_path.rpartition(".")[2]
        msg = f"{name} cannot take its arguments ({' '.join(str(error).split())}): correct its init_args."
        raise ConfigurationError(msg) from error


def check_model(class_path: str) -> None:
    """Refuse a model that anomalib does not know.

    Args:
        class_path: Name of a model, with or without its package.

    Raises:
        ConfigurationError: If there is none.
    """
    known = {*MODELS, *list_models("pascal")}
    if class_path.rpartition(".")[2] not in known:
        msg = f"There is no model {class_path}: take one of {', '.join(sorted(known))}."
        raise ConfigurationError(msg)


def _build_efficient_ad(weights: str, image_size: int, **arguments: Any) -> AnomalibModule:
    if image_size < SMALLEST_SIDE:
        msg = f"EfficientAd takes images of {SMALLEST_SIDE} pixels or more: give it an image_size of its own."
        raise ConfigurationError(msg)
    kinds = {"imagenet": EfficientAd, "random": OfflineEfficientAd}
    if weights not in kinds:
        msg = (
            f"EfficientAd has a teacher of its own and no {weights} weights: take imagenet or random, or leave it out."
        )
        raise ConfigurationError(msg)
    kind: Any = kinds[weights]
    return kind(pre_processor=kind.configure_pre_processor((image_size, image_size)), **arguments)


def check_tiles(class_path: str, arguments: Mapping[str, Any]) -> None:
    """Look whether the magnetic tiles are there, which neither this package nor anomalib can fetch.

    Args:
        class_path: Name of a datamodule, with or without its package; others than ``MagneticTile`` are not looked for.
        arguments: Its arguments.

    Raises:
        DataError: If their folder is not there, or not whole.
    """
    if class_path.rpartition(".")[2] == "MagneticTile":
        find_tiles(Path(arguments.get("root", DEFAULT_ROOT)))


def build_data(class_path: str, arguments: Mapping[str, Any], seed: int, batch: int) -> AnomalibDataModule:
    """Build a datamodule whose validation images never come from the test set.

    Many of anomalib's datamodules validate on the test images; a threshold found there would know them. Here a fifth of
    the good training images validates, unless the arguments name a ``val_split_mode`` or the data set has validation
    images of its own.

    Args:
        class_path: Name of a datamodule that anomalib knows, with or without its package.
        arguments: Its arguments.
        seed: Seed of its split, where it has one.
        batch: Images in a training batch.

    Returns:
        The datamodule, not set up.

    Raises:
        ConfigurationError: If there is no such datamodule, or it does not take the arguments.
    """
    name = class_path.rpartition(".")[2]
    kind = getattr(import_module("anomalib.data"), name, None)
    if not (inspect.isclass(kind) and issubclass(kind, AnomalibDataModule)):
        msg = (
            f"There is no data set {class_path}: take a datamodule that 'anomalib train --help' lists, such as Folder."
        )
        raise ConfigurationError(msg)
    known = inspect.signature(kind).parameters
    if unknown := [key for key in arguments if key not in known]:
        msg = f"{name} has no {', '.join(unknown)}: it takes {', '.join(known)}."
        raise ConfigurationError(msg)
    named = [key for key, parameter in known.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    if lacking := [key for key in named if known[key].default is inspect.Parameter.empty and key not in arguments]:
        msg = (
            f"{name} needs {', '.join(lacking)}: write a benchmark's YAML file with these as its init_args, or give "
            "your own images with --folder."
        )
        raise ConfigurationError(msg)
    defaults: dict[str, Any] = {"seed": seed, "train_batch_size": batch}
    if not torch.accelerator.is_available():
        defaults["num_workers"] = 0  # anomalib's eight would take the processor from the training
    if "val_split_mode" in known and ValSplitMode(known["val_split_mode"].default) != ValSplitMode.FROM_DIR:
        defaults |= {"val_split_mode": ValSplitMode.FROM_TRAIN.value, "val_split_ratio": HELD_OUT}
    with _refusing_arguments(class_path):
        return kind(**({key: value for key, value in defaults.items() if key in known} | dict(arguments)))
