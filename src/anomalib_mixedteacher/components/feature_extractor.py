"""Truncated timm backbones that return the feature maps of chosen stages."""

import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import FeatureInfo, is_model_in_modules
from torch import nn

from anomalib_mixedteacher.errors import ConfigurationError


def initialize_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialise a network in place: Kaiming-normal (fan out) convolutions, neutral batch normalisation.

    Args:
        module: Network of convolutions and batch normalisation.
        generator: Source of randomness; torch's global one by default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # Grouped convolutions: an input channel feeds out_channels / groups outputs, which torch's own
            # fan computation does not know.
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / fan_out), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


class PooledBlocks(nn.Module):
    """A chain of layers that returns its maps behind max-poolings: a VGG, or a student that is built like one.

    Args:
        features: Layers, max-poolings among them.
        out_indices: Max-poolings to return, counted from 0; layers behind the last of them are left out.

    Raises:
        IndexError: If there are fewer max-poolings.
    """

    def __init__(self, features: nn.Sequential, out_indices: Sequence[int]) -> None:
        super().__init__()
        poolings = [position for position, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        self.ends = tuple(poolings[index] for index in out_indices)
        self.features = features[: max(self.ends) + 1]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute feature maps, shallow to deep.

        Args:
            images: Images of shape ``(B, 3, H, W)``.

        Returns:
            One map per max-pooling to return.
        """
        maps = []
        x = images
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in self.ends:
                maps.append(x)
        return maps


class FeatureExtractor(nn.Module):
    """A timm backbone cut behind the last stage in use.

    The network is laid out on the meta device, so stages behind the last one in use never take memory, and
    parameter names are timm's own, so published weights fit as they are. Weights are initialised at random;
    nothing is downloaded.

    Args:
        backbone: timm architecture name, such as ``"resnet18"``.
        out_indices: Stages to return, in timm's ``features_only`` numbering (stage ``i`` of ``efficientnet_b0``
            has stride ``2 ** (i + 1)``; of ``resnet18``, ``1`` is ``layer1`` at stride 4). Of a VGG, stage ``i`` is
            block ``i + 1`` behind its max-pooling, stride ``2 ** (i + 1)``.

    Raises:
        ConfigurationError: If the backbone is unknown or does not have the stages.
    """

    def __init__(self, backbone: str, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_indices = tuple(out_indices)
        try:
            with torch.device("meta"):
                net: Any = (
                    _vgg(backbone, self.out_indices)
                    if is_model_in_modules(backbone, ["vgg"])
                    else timm.create_model(backbone, features_only=True, out_indices=self.out_indices)
                )
        except RuntimeError as error:
            msg = f"Unknown backbone {backbone!r}; choose one that timm.list_models() lists."
            raise ConfigurationError(msg) from error
        except (AssertionError, IndexError) as error:
            msg = f"{backbone} has no stages {list(out_indices)}; choose stages from 0 to 4, shallow to deep."
            raise ConfigurationError(msg) from error
        if hasattr(net, "blocks"):  # timm cuts ResNets behind the last stage in use, EfficientNets not
            net.blocks = net.blocks[: max(info["stage"] for info in net.feature_info.get_dicts())]
        self.feature_info: Any = net.feature_info
        self.net: nn.Module = net.to_empty(device="cpu")
        initialize_weights(self.net)

    @property
    def channels(self) -> list[int]:
        """Channels of each returned map."""
        return list(self.feature_info.channels())

    @property
    def reduction(self) -> list[int]:
        """Stride of each returned map with respect to the image."""
        return list(self.feature_info.reduction())

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute feature maps, shallow to deep.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            One map of shape ``(B, C_i, H / stride_i, W / stride_i)`` per stage, sides rounded up; a VGG's are rounded
            down.
        """
        return self.net(images)


def _vgg(backbone: str, out_indices: Sequence[int]) -> PooledBlocks:
    """Lay out a VGG; timm's ``features_only`` renames its layers and returns the maps in front of the max-poolings."""
    features: Any = timm.create_model(backbone).features
    poolings: list[dict[str, Any]] = []
    width = 3
    for position, layer in enumerate(features):
        if isinstance(layer, nn.Conv2d):
            width = layer.out_channels
        elif isinstance(layer, nn.ReLU):
            layer.inplace = False  # a gradient with respect to the image needs what goes in
        elif isinstance(layer, nn.MaxPool2d):
            stride = 2 ** (len(poolings) + 1)
            poolings.append({"num_chs": width, "reduction": stride, "module": f"features.{position}"})
    net: Any = PooledBlocks(features, out_indices)
    net.feature_info = FeatureInfo(poolings, tuple(out_indices))
    return net
