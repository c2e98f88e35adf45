"""Backbones cut behind the last layer in use."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import timm
import torch
from torch import nn

from anomalib_mixedteacher.errors import ConfigurationError

_CHAINS = ("blocks", "features")  # of an EfficientNet and of a VGG: containers whose children are layers
_PROBE_SIDE = 256


def initialize_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialise a network in place: Kaiming-normal (fan out) convolutions, neutral batch normalisation.

    Args:
        module: Network of convolutions and batch normalisation.
        generator: Source of randomness; torch's global one by default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # torch's own fan ignores groups: an input channel feeds out_channels / groups outputs
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / fan_out), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


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
