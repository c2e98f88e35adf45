"""Models and datamodules of a benchmark: the same teachers, the same split, nothing fetched that was not asked for."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast
from unittest import mock

import anomalib.data
import lightning
import timm
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import ValSplitMode
from anomalib.models import AnomalibModule, Patchcore, Stfpm, get_model, list_models
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from anomalib_mixedteacher import NormalCalibratedPostProcessor
from anomalib_mixedteacher.benchmark.plan import short
from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.components.teacher import FeatureExtractor, set_normalization_statistics
from anomalib_mixedteacher.components.weights import load_weights
from anomalib_mixedteacher.errors import ConfigurationError, MixedTeacherError
from anomalib_mixedteacher.plugin import MODELS, public

HELD_OUT = 0.2  # share of the good training images kept for validation, as the official recipe has it

# anomalib's models with a teacher that can be given weights; Patchcore with the others' ResNet-18
PEERS: dict[str, Callable[..., AnomalibModule]] = {
    "Stfpm": Stfpm,
    "Patchcore": partial(Patchcore, backbone="resnet18"),
}


def build(cell: Cell) -> tuple[AnomalibModule, list[Callback]]:
    """Build a cell's model, whose teachers get their weights in training, and the callbacks that its trainer needs.

    Raises:
        ConfigurationError: If there is no such model, or it does not take its arguments.
        CalibrationError: If the budget of false alarms is no share.
    """
    size = cell.image_size if isinstance(cell.image_size, tuple) else (cell.image_size, cell.image_size)
    name, arguments = short(cell.class_path), {**cell.init_args, **cell.map_args}
    arguments["post_processor"] = NormalCalibratedPostProcessor(alarm_rate=cell.alarm_rate)
    with _refusing_arguments(name):
        if name in MODELS:
            kind: Any = public(name)
            sizes = {} if arguments.get("tile_size") else {"image_size": size}
            return kind(teacher_weights=cell.teacher_weights, **sizes, **arguments), []
        if name in PEERS:
            pre_processor = AnomalibModule.configure_pre_processor(size)
            with no_download():
                return PEERS[name](pre_processor=pre_processor, **arguments), [_PeerTeacher(cell.teacher_weights)]
        model = get_model(cell.class_path, **arguments)  # with a teacher of its own, if any
    model.pre_processor = type(model).configure_pre_processor(size)
    return model, []


def check_model(cell: Cell) -> None:
    """Refuse a cell whose model or map cannot be had, before anything is trained.

    Raises:
        ConfigurationError: If there is no such model, or it does not take its arguments.
        CalibrationError: If the budget of false alarms is no share.
    """
    name, known = short(cell.class_path), {*MODELS, *list_models("pascal")}
    if name not in known:
        msg = f"There is no model {cell.class_path}: take one of {', '.join(sorted(known))}."
        raise ConfigurationError(msg)
    if name not in {*MODELS, *PEERS} and not cell.map_args:
        return  # may fetch weights when it is built
    of_map = map_arguments(build(replace(cell, map_args={}))[0])
    if other := ", ".join(sorted(set(cell.map_args) - of_map)):
        msg = f"{other} is no argument of {name}'s map alone, which has {', '.join(sorted(of_map)) or 'none'}: train "
        msg += "it as a model of its own."
        raise ConfigurationError(msg)
    build(cell)


def map_arguments(model: AnomalibModule) -> set[str]:
    """Name the arguments of a model that its anomaly map has, and its loss has not."""
    parts = (model, getattr(model.model, "anomaly_map_generator", None), getattr(model, "loss", None))
    of_model, of_map, of_loss = (set(inspect.signature(type(part)).parameters) if part else set() for part in parts)
    return of_model & of_map - of_loss


def needs_statistics(model: AnomalibModule) -> bool:
    """Tell whether a model's map compares with good images: what training gathers for it serves its other maps."""
    return getattr(getattr(model.model, "anomaly_map_generator", None), "needs_good_statistics", False)


def build_data(cell: Cell) -> AnomalibDataModule:
    """Build a cell's datamodule, whose validation images never come from the test set.

    Many of anomalib's datamodules validate on the test images; a threshold found there would know them. Here a fifth of
    the good training images validates, unless the arguments name a ``val_split_mode`` or the data set has validation
    images of its own.

    Raises:
        ConfigurationError: If there is no such datamodule, or it does not take the arguments.
    """
    name = short(cell.data_class)
    kind = getattr(anomalib.data, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, AnomalibDataModule)):
        msg = f"There is no data set or folder {name}: give a folder, or a class that 'anomalib train --help' lists."
        raise ConfigurationError(msg)
    known = _parameters(kind)
    if unknown := [key for key in cell.data_args if key not in known]:
        msg = f"{name} has no {', '.join(unknown)}: it takes {', '.join(known)}."
        raise ConfigurationError(msg)
    # no processes for loading: workers of a cluster may not have any, and anomalib's eight would take training's cores
    defaults: dict[str, Any] = {"seed": cell.seed, "train_batch_size": cell.batch, "num_workers": 0}
    if "val_split_mode" in known and ValSplitMode(known["val_split_mode"].default) != ValSplitMode.FROM_DIR:
        defaults |= {"val_split_mode": ValSplitMode.FROM_TRAIN.value, "val_split_ratio": HELD_OUT}
    with _refusing_arguments(name):
        return kind(**({key: value for key, value in defaults.items() if key in known} | cell.data_args))


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Give the arguments of a class's constructor, and those that it passes on to the classes behind it."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        of_base = inspect.signature(base).parameters
        found |= {name: parameter for name, parameter in of_base.items() if name not in found}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in of_base.values()):
            break
    return {name: parameter for name, parameter in found.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD}


@contextmanager
def _refusing_arguments(name: str) -> Iterator[None]:
    """Say in a sentence that a constructor does not take its arguments."""
    try:
        yield
    except MixedTeacherError:
        raise
    except (TypeError, ValueError) as error:
        msg = f"{name} cannot take its arguments ({' '.join(str(error).split())}): correct its init_args."
        raise ConfigurationError(msg) from error


@contextmanager
def no_download() -> Iterator[None]:
    """Let anomalib's constructors build their backbones without fetching weights: Stfpm has no argument for that."""
    create = timm.create_model
    with mock.patch.object(timm, "create_model", lambda *args, **more: create(*args, **more | {"pretrained": False})):
        yield


class _PeerTeacher(Callback):
    """Gives a peer's frozen backbone its weights when training starts."""

    def __init__(self, source: str) -> None:
        self.source = source

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, AnomalibModule)
        batch = next(iter(cast("DataLoader", trainer.train_dataloader)))
        transform: Any = cast("PreProcessor", pl_module.pre_processor).transform
        load_peer_teacher(pl_module, self.source, transform(batch.image.to(pl_module.device)))


def load_peer_teacher(model: AnomalibModule, source: str, images: torch.Tensor) -> None:
    """Give the frozen backbone of a ``Stfpm`` or ``Patchcore`` this package's teacher weights.

    Normalised good images ``(B, 3, H, W)`` set the statistics of random ones.
    """
    extractor: Any = model.model.teacher_model if isinstance(model, Stfpm) else model.model.feature_extractor
    net = extractor.feature_extractor
    net.load_state_dict(load_weights(FeatureExtractor(extractor.backbone, extractor.layers), source))
    if source == "random":
        set_normalization_statistics(net, images)
