"""anomalib's own models with this package's teacher weights, so that comparisons share teachers and need no network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import timm
import torch
from anomalib.models import AnomalibModule, Patchcore, Stfpm
from anomalib.models.components import TimmFeatureExtractor

from anomalib_mixedteacher.components.teacher import set_normalization_statistics
from anomalib_mixedteacher.components.weights import load_teacher_weights
from anomalib_mixedteacher.errors import ConfigurationError

PEERS: dict[str, Callable[..., AnomalibModule]] = {
    "Stfpm": Stfpm,
    "Patchcore": partial(Patchcore, backbone="resnet18"),
}


@contextmanager
def no_download() -> Iterator[None]:
    """Let anomalib's constructors build their backbones without fetching weights."""
    create = timm.create_model

    def untrained(*args: Any, **kwargs: Any) -> torch.nn.Module:
        return create(*args, **{**kwargs, "pretrained": False})

    with mock.patch.object(timm, "create_model", untrained):
        yield


def build_peer(name: str, **arguments: Any) -> AnomalibModule:
    """Build one of anomalib's teacher-based models without fetching weights.

    Args:
        name: ``"Stfpm"`` or ``"Patchcore"``.
        arguments: The model's own arguments; without ``backbone``, Patchcore has a ResNet-18 and not anomalib's
            ``wide_resnet50_2``, so that both have the same teacher.

    Returns:
        The model; its teacher is random until :func:`load_peer_teacher`.

    Raises:
        ConfigurationError: If the model is another one.
    """
    if name not in PEERS:
        msg = f"No peer {name!r}; choose one of {', '.join(PEERS)}."
        raise ConfigurationError(msg)
    with no_download():
        return PEERS[name](**arguments)


def load_peer_teacher(model: AnomalibModule, source: str, images: torch.Tensor) -> None:
    """Give a peer's frozen backbone this package's teacher weights.

    Args:
        model: What :func:`build_peer` returned.
        source: As for :class:`~anomalib_mixedteacher.components.teacher.Teacher`.
        images: Normalised good images of shape ``(B, 3, H, W)``; set the statistics of ``random`` teachers.

    Raises:
        WeightsError: If the weights cannot be found, read or matched.
    """
    extractor = model.model.teacher_model if isinstance(model, Stfpm) else model.model.feature_extractor
    if not isinstance(extractor, TimmFeatureExtractor) or not isinstance(extractor.backbone, str):
        msg = f"{model.name} has no teacher that can be given weights."
        raise ConfigurationError(msg)
    net = extractor.feature_extractor
    net.load_state_dict(load_teacher_weights(extractor.backbone, source, net))
    if source == "random":
        set_normalization_statistics(net, images)
