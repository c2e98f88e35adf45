"""Whitening: what varies least on good images counts as much as what varies most."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.maps import full_precision

_RIDGE = 0.1  # of the mean variance: what hardly varies on good images is heard, noise and rounding are not
_LEAST_VARIANCE = 1e-8  # of images that show nothing


class Moments(NamedTuple):
    """Of maps with ``C`` channels: number of positions, sum ``(C,)``, sum of outer products ``(C, C)``; in float64."""

    positions: torch.Tensor
    total: torch.Tensor
    products: torch.Tensor


@torch.no_grad()
def gather_moments(maps: Sequence[torch.Tensor]) -> Moments:
    """Sum up maps, each of shape ``(B, C, H, W)``, of any sizes."""
    channels = maps[0].shape[1]
    positions, total = torch.zeros((), dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    for part in maps:
        vectors = part.to("cpu", torch.float64).transpose(0, 1).flatten(1)  # not every device has float64
        positions += vectors.shape[1]
        total += vectors.sum(dim=1)
        products += vectors @ vectors.T
    return Moments(positions, total, products)


class Whitening(nn.Module):
    r"""Centre the channels of a map on good images, bring them to one size, and decorrelate them.

    .. math::  w(x) = \left( C + 0.1 \, \bar c I \right)^{-1/2} (x - m)

    with mean :math:`m` and covariance :math:`C` over the positions of good images, and the mean :math:`\bar c` of its
    diagonal. The squared Euclidean norm is then a Mahalanobis distance. Until it is fitted, maps stay as they are.

    Args:
        channels: Number of channels.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(channels)[..., None, None])
        self.register_buffer("bias", torch.zeros(channels))

    def fit(self, *moments: Moments) -> None:
        """Set mean and covariance from the moments of good images.

        From few images they fit these images best: their own whitened maps are smaller than those of others.
        """
        positions, total, products = (torch.stack(parts).sum(dim=0) for parts in zip(*moments, strict=True))
        mean = total / positions
        variances, axes = torch.linalg.eigh(products / positions - torch.outer(mean, mean))
        ridge = _RIDGE * variances.mean().clamp(min=_LEAST_VARIANCE)
        matrix = axes * (variances.clamp(min=0) + ridge).rsqrt() @ axes.T
        self.weight.copy_(matrix[..., None, None])
        self.bias.copy_(-matrix @ mean)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Whiten maps of shape ``(B, C, H, W)``; in float32 also where the rest is in half precision."""
        with full_precision(maps.device):
            return F.conv2d(maps.to(self.weight.dtype), self.weight, self.bias)
