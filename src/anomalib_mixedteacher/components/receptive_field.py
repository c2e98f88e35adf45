"""Which pixels of the image a position of a feature map sees."""

from dataclasses import dataclass

from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor
from anomalib_mixedteacher.errors import ConfigurationError

# What sees a single position, and what runs its children one after the other, a residual block's shortcut aside.
_OTHERS = (nn.BatchNorm2d, nn.ReLU, nn.Identity, nn.Sequential, BasicBlock, Bottleneck)


@dataclass(frozen=True)
class ReceptiveField:
    """Theoretical receptive field of a feature map's positions, the same along both axes.

    Position ``i`` sees the pixels from ``start + stride * i - (size - 1) / 2`` to ``start + stride * i +
    (size - 1) / 2``, both included, as far as they lie in the image. The centre of pixel ``p`` is at ``p``.

    Attributes:
        size: Pixels that a position sees along one axis.
        stride: Pixels between neighbouring positions.
        start: Centre of the field of position 0, in pixels. A whole number where ``size`` is odd, a half one where it
            is even: a field covers whole pixels.
    """

    size: int
    stride: int
    start: float

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> "ReceptiveField":
        """Compute the field behind one more convolution or pooling, from what that layer has along one axis."""
        reach = dilation * (kernel - 1)
        return ReceptiveField(
            size=self.size + reach * self.stride,
            stride=self.stride * stride,
            start=self.start + (reach / 2 - padding) * self.stride,
        )


def receptive_fields(extractor: FeatureExtractor) -> list[ReceptiveField]:
    """Compute the receptive field of each map of a ResNet, from its layers along the main path.

    A block's shortcut sees less than its main path does and is left aside.

    Args:
        extractor: A timm ResNet of basic or bottleneck blocks without attention, such as ``resnet18`` or
            ``wide_resnet50_2``.

    Returns:
        One field per map, shallow to deep.

    Raises:
        ConfigurationError: If the backbone holds a layer that is no part of such a ResNet.
    """
    field = ReceptiveField(size=1, stride=1, start=0.0)
    fields = []
    for name, child in extractor.named_children():
        for path, layer in child.named_modules():
            if "downsample" in path:
                continue
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                of_axes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
                field = field.through(*(value[0] if isinstance(value, tuple) else int(value) for value in of_axes))
            elif not isinstance(layer, _OTHERS):
                msg = (
                    f"The receptive field of {extractor.backbone} cannot be read from its layers (it holds a "
                    f"{type(layer).__name__}): choose a plain ResNet such as resnet18."
                )
                raise ConfigurationError(msg)
        if name in extractor.layers:
            fields.append(field)
    return fields
