"""Whitening: what varies least on good images counts as much as what varies most."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.maps import full_precision

_RIDGE = 0.1  # of the mean variance: what hardly varies on good images is heard, noise and rounding are not
_LEAST_VARIANCE = 1e-8  # of images that show nothing


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

    @torch.no_grad()
    def fit(self, maps: Sequence[torch.Tensor]) -> None:
        """Set mean and covariance from maps of good images, each of shape ``(B, C, H, W)``, of any sizes.

        From few images they fit these images best: their own whitened maps are smaller than those of others.
        """
        count = sum(part[:, 0].numel() for part in maps)
        mean = torch.zeros(len(self.bias), dtype=torch.float64)
        moments = torch.zeros(len(self.bias), len(self.bias), dtype=torch.float64)
        for part in maps:
            vectors = part.to("cpu", torch.float64).transpose(0, 1).flatten(1)  # not every device has float64
            mean += vectors.sum(dim=1) / count
            moments += vectors @ vectors.T / count
        variances, axes = torch.linalg.eigh(moments - torch.outer(mean, mean))
        ridge = _RIDGE * variances.mean().clamp(min=_LEAST_VARIANCE)
        matrix = axes * (variances.clamp(min=0) + ridge).rsqrt() @ axes.T
        self.weight.copy_(matrix[..., None, None])
        self.bias.copy_(-matrix @ mean)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Whiten maps of shape ``(B, C, H, W)``; in float32 also where the rest is in half precision."""
        with full_precision(maps.device):
            return F.conv2d(maps.to(self.weight.dtype), self.weight, self.bias)
