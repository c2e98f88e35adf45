"""Which pixels of the image a position of a feature map sees, and up-sampling over them."""

from dataclasses import dataclass

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from anomalib_mixedteacher.components.maps import full_precision
from anomalib_mixedteacher.components.teacher import FeatureExtractor
from anomalib_mixedteacher.errors import ConfigurationError

_LEAST_SPREAD = 1e-3  # exp(-1 / _LEAST_SPREAD) is 0 in float64: every narrower Gaussian has the same weights
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


def gaussian_upsample(maps: torch.Tensor, size: tuple[int, int], field: ReceptiveField, sigma: float) -> torch.Tensor:
    """Upsample maps by a Gaussian over each position's receptive field, as MSFD (Yao et al. 2021) does.

    Equal to the transposed convolution with the stride of ``field`` whose fixed kernel is a two-dimensional Gaussian
    truncated at the receptive field, divided by what the same transposed convolution gives for ones. The division is
    ours: with it a constant map stays constant up to the border. Kernel and divisor are products of a factor along the
    rows and one along the columns, so two matrix products give the same result.

    A pixel beyond every field takes the value of the nearest position.

    Args:
        maps: Maps of shape ``(B, 1, H, W)``, float32 or float64.
        size: Height and width in pixels of the image that the maps belong to.
        field: Receptive field of the maps' positions.
        sigma: Standard deviation of the Gaussian in pixels, positive.

    Returns:
        Maps of shape ``(B, 1, *size)``. A value is a weighted mean of the map's values.
    """
    rows = _gaussian_matrix(maps.shape[-2], size[0], field, sigma, maps)
    columns = _gaussian_matrix(maps.shape[-1], size[1], field, sigma, maps)
    with full_precision(maps.device):
        return rows @ maps @ columns.T


def _gaussian_matrix(source: int, target: int, field: ReceptiveField, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """Build the ``(target, source)`` matrix of Gaussian weights, whose rows add up to 1.

    Distances are integers, in half pixels, until the nearest position's is subtracted: where OpenVINO computes in
    bfloat16, they would lose their low bits. The nearest position then has weight 1 before the rows are divided, so
    no row is empty, however narrow the Gaussian.
    """
    pixels = 2 * torch.arange(target, device=like.device)
    centers = round(2 * field.start) + 2 * field.stride * torch.arange(source, device=like.device)
    distances = (pixels[:, None] - centers[None, :]).abs()
    nearest = distances.amin(dim=1, keepdim=True)
    excess = (distances.square() - nearest.square()).to(like.dtype)
    inside = distances <= nearest.clamp(min=field.size - 1)
    weights = torch.exp(-excess / max(8 * sigma**2, _LEAST_SPREAD)) * inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)
