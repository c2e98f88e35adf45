"""Anomaly map of MKD: the gradient of the score with respect to the image, and what it says about each pixel.

Neither ONNX nor OpenVINO can differentiate. But the gradient of a chain of convolutions, batch normalisations, ReLUs
and max-poolings is a chain as well: the same layers backwards, each fed with what it saw on the way forward.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.maps import gaussian_smoothing, smoothing_reach
from anomalib_mixedteacher.errors import ConfigurationError

PERCENTILE = 99


class AnomalyMapGenerator(nn.Module):
    """Turn a gradient with respect to the image into an anomaly map.

    The gradient's absolute values are summed over the channels, clipped at the image's 99th percentile, since a few
    pixels outweigh all others in a gradient, and smoothed by a Gaussian (Salehi et al. 2021, and the authors' code).

    The authors also scale each image's map to [0, 1]. That is left out: every image would then have a pixel at 1, the
    good ones too, and no threshold could tell images apart.

    Args:
        sigma: Standard deviation of the Gaussian smoothing in pixels; 0 for none.

    Raises:
        ConfigurationError: If sigma is negative.
    """

    def __init__(self, sigma: float = 4.0) -> None:
        super().__init__()
        if sigma < 0:
            msg = f"sigma must be 0 (no smoothing) or positive, not {sigma}."
            raise ConfigurationError(msg)
        self.smoothing = gaussian_smoothing(sigma)
        self.min_side = smoothing_reach(sigma) + 1  # a reflected border is shorter than the map

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Compute the anomaly map.

        Args:
            gradient: Gradient of each image's score, of shape ``(B, 3, H, W)``.

        Returns:
            Anomaly map of shape ``(B, 1, H, W)``, non-negative, higher where more anomalous.
        """
        grey = gradient.abs().sum(dim=1, keepdim=True)
        return self.smoothing(grey.minimum(percentile(grey.flatten(1), PERCENTILE)[:, None, None, None]))


def percentile(values: torch.Tensor, percent: int) -> torch.Tensor:
    """Compute a percentile of each row, interpolated linearly, as an operation that can be exported.

    Args:
        values: Values of shape ``(B, N)``.
        percent: From 0 to 99.

    Returns:
        Percentiles of shape ``(B,)``.
    """
    # In integers, since the size may be a symbol in the exported graph.
    rank = percent * (values.shape[1] - 1)
    below, remainder = rank // 100, rank % 100
    largest = values.topk(values.shape[1] - below, dim=1).values
    lower, upper = largest[:, -1], largest[:, -2]
    return lower + (upper - lower) * (remainder / 100)


def activations(layers: nn.Sequential, images: torch.Tensor) -> list[torch.Tensor]:
    """Compute the input of each layer, and the output of the last one."""
    steps = [images]
    for layer in layers:
        steps.append(layer(steps[-1]))
    return steps


def image_gradient(
    layers: nn.Sequential, steps: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Lead gradients of the outputs of the last max-poolings back to the images.

    Args:
        layers: Convolutions (3 x 3), batch normalisations in evaluation mode, ReLUs, and max-poolings (2 x 2) of what
            ReLUs give, one of these last.
        steps: What :func:`activations` gives.
        gradients: Gradients of each image's score with respect to the outputs of as many max-poolings, shallow to deep.

    Returns:
        Gradients with respect to the images, of their shape ``(B, 3, H, W)``.
    """
    waiting = list(gradients)
    gradient = torch.zeros_like(waiting[-1])
    for position in range(len(layers) - 1, -1, -1):
        layer, x, y = layers[position], steps[position], steps[position + 1]
        if isinstance(layer, nn.MaxPool2d):
            gradient = gradient + waiting.pop() if waiting else gradient
            gradient = _unpooled(gradient * y.sign(), x, y)
        elif isinstance(layer, nn.Conv2d):
            gradient = _transposed(layer, gradient)
        elif isinstance(layer, nn.BatchNorm2d):
            variance = cast("torch.Tensor", layer.running_var)
            gradient = gradient * (layer.weight * (variance + layer.eps).rsqrt())[:, None, None]
        elif not isinstance(
            layers[position + 1], nn.MaxPool2d
        ):  # a ReLU; one that is pooled was on where the maximum is
            gradient = gradient * y.sign()  # 0 or 1; torch.where takes three times as long
    return gradient


def _transposed(layer: nn.Conv2d, gradient: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_compiling():
        # OpenVINO (2026.4) gives wrong numbers where a convolution and a transposed one share their weights.
        return F.conv2d(gradient, layer.weight.transpose(0, 1).flip(2, 3), padding=layer.padding)
    return F.conv_transpose2d(gradient, layer.weight, padding=cast("tuple[int, ...]", layer.padding))


def _unpooled(gradient: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Give a max-pooling's gradient to the maximum of each window; where an image is flat, several maxima share it."""
    height, width = 2 * y.shape[-2], 2 * y.shape[-1]
    is_maximum = 1 + (x[:, :, :height, :width] - F.interpolate(y, scale_factor=2)).sign()
    share = gradient / (4 * F.avg_pool2d(is_maximum, kernel_size=2))
    spread = F.interpolate(share, scale_factor=2) * is_maximum
    if spread.shape == x.shape:
        return spread
    return F.pad(spread, (0, x.shape[-1] - width, 0, x.shape[-2] - height))  # an odd side's last row is in no window
