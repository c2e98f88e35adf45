"""Anomaly map of MKD: what the gradient of the score says about each pixel."""

import torch
from torch import nn

from anomalib_mixedteacher.components.smoothing import gaussian_smoothing, smoothing_reach
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
