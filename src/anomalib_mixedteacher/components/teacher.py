"""Backbones cut behind the last layer in use, and the frozen teachers made of them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.weights import IMAGENET_TAGS, initialize_weights, load_weights
from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError

_CHAINS = ("blocks", "features")  # of an EfficientNet and of a VGG: containers whose children are layers
_PROBE_SIDE = 256


class FeatureExtractor(nn.Module):
    """A timm backbone that returns the maps of chosen layers and ends behind the last of them.

    Works for backbones that run their children one after the other: ResNets, EfficientNets, VGGs. Parameters have
    timm's names, so that published weights fit as they are. They start at random; nothing is downloaded.

    Args:
        backbone: timm architecture name, such as ``"resnet18"``.
        layers: Names of layers in timm's naming: ``"layer1"`` of a ResNet, ``"blocks.4"`` of an EfficientNet,
            ``"features.9"`` of a VGG.

    Attributes:
        channels: Channels of each map.
        strides: Pixels of the image between neighbouring positions of each map.

    Raises:
        ConfigurationError: If the backbone is unknown or does not have the layers.
    """

    def __init__(self, backbone: str, layers: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        try:
            with torch.device("meta"):
                net = timm.create_model(backbone)
        except RuntimeError as error:
            msg = f"Unknown backbone {backbone!r}: choose one that timm.list_models() lists."
            raise ConfigurationError(msg) from error
        names = [name for name, _ in _chain(net)]
        missing = [name for name in layers if name not in names]
        if missing or not layers:
            msg = f"{backbone} has no layer {', '.join(missing) or '(none given)'}: choose of {', '.join(names)}."
            raise ConfigurationError(msg)
        self.layers = tuple(sorted(layers, key=names.index))
        kept = names[: names.index(self.layers[-1]) + 1]
        for name, child in net.named_children():
            if name in _CHAINS:
                child = child[: sum(other.startswith(f"{name}.") for other in kept)]  # type: ignore[index]
            if name in kept or name in _CHAINS:
                self.add_module(name, child)
        with torch.device("meta"):
            maps = FeatureExtractor.forward(self, torch.empty(1, 3, _PROBE_SIDE, _PROBE_SIDE))
        self.channels = [features.shape[1] for features in maps]
        self.strides = [_PROBE_SIDE // features.shape[-1] for features in maps]
        for (layer, _), (_, following) in pairwise(_chain(self)):
            if layer in self.layers and getattr(following, "inplace", False):
                following.inplace = False  # type: ignore[assignment]  # it would change the map that is returned
        self.to_empty(device="cpu")
        initialize_weights(self)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute feature maps, shallow to deep.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            One map of shape ``(B, C_i, H / stride_i, W / stride_i)`` per layer; sides are rounded up, a VGG's down.
        """
        maps = []
        for name, layer in _chain(self):
            images = layer(images)
            if name in self.layers:
                maps.append(images)
        return maps


def _chain(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a network in the order of their use."""
    for name, child in net.named_children():
        if name in _CHAINS:
            yield from ((f"{name}.{index}", layer) for index, layer in child.named_children())
        else:
            yield name, child


class Teacher(FeatureExtractor):
    """A frozen backbone whose weights are loaded on an explicit call, or with a checkpoint; never on construction.

    Until then its parameters are NaN, so that it can neither be used nor saved as if it were a loaded one.

    All teachers take the same images, normalised by ImageNet's mean and deviation. A backbone that was trained with
    another normalisation, as EfficientNet-Lite0 with ``(x - 0.5) / 0.5``, applies the difference itself.

    Args:
        backbone: timm architecture name.
        layers: See :class:`FeatureExtractor`.
        pool: Average-pool each map over 2 x 2 positions, which doubles its stride.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, backbone: str, layers: Sequence[str], pool: bool = False) -> None:
        super().__init__(backbone, layers)
        self.pool = pool
        if pool:
            self.strides = [2 * stride for stride in self.strides]
        config = timm.get_pretrained_cfg(IMAGENET_TAGS.get(backbone, backbone))
        values = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, config.mean, config.std) if config else ()
        mean, std, own_mean, own_std = torch.tensor(values or ((0.0,) * 3, (1.0,) * 3) * 2)[..., None, None]
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)
        self.same_normalization = bool((self.scale == 1).all() and (self.shift == 0).all())
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.fill_(torch.nan)
        self.loaded = False
        self.register_load_state_dict_post_hook(_note_loaded)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a teacher's batch normalisation never learns."""
        del mode
        return super().train(False)

    def load(self, source: str) -> None:
        """Load weights from a source; see :func:`~anomalib_mixedteacher.components.weights.load_weights`.

        Raises:
            WeightsError: If they cannot be found, read or matched to the backbone.
        """
        self.load_state_dict(load_weights(self, source))

    def check_loaded(self) -> None:
        """Check that the teacher can be used.

        Raises:
            TeacherNotLoadedError: If no weights were loaded yet.
        """
        if not self.loaded:
            msg = (
                f"The {self.backbone} teacher has no weights yet: train the model first, or give a trained checkpoint "
                "(--ckpt_path on the command line, load_from_checkpoint in Python)."
            )
            raise TeacherNotLoadedError(msg)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute teacher features.

        Args:
            images: Images of shape ``(B, 3, H, W)``, normalised by ImageNet's mean and deviation.

        Returns:
            One map per layer, shallow to deep; pooled maps have half the size, rounded up.

        Raises:
            TeacherNotLoadedError: If no weights were loaded yet.
        """
        self.check_loaded()
        maps = super().forward(images if self.same_normalization else images * self.scale + self.shift)
        # ceil_mode rounds sides up as strided convolutions do, so that maps meet the student's at any size
        return [F.avg_pool2d(map_, kernel_size=2, ceil_mode=True) for map_ in maps] if self.pool else maps


@torch.no_grad()
def set_normalization_statistics(net: nn.Module, images: torch.Tensor) -> None:
    """Set a frozen network's running statistics from images: with random weights the signal would fade with depth.

    Args:
        net: Network in evaluation mode.
        images: Normalised images of shape ``(B, 3, H, W)``.
    """
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: after one pass, the statistics of that pass
        norm.training = True
    net(images)
    net.eval()


def _note_loaded(module: nn.Module, incompatible_keys: Any) -> None:
    del incompatible_keys
    module.loaded = not any(parameter.isnan().any() for parameter in module.parameters())  # type: ignore[assignment]
