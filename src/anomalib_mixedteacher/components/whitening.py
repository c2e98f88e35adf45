"""Whitening: directions of teacher features whose every part varies alike on good images."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.maps import full_precision

_RIDGE = 0.1  # of the mean variance: what hardly varies on good images is heard, noise and rounding are not
_LEAST_VARIANCE = 1e-8  # of images that show nothing


class Whitening(nn.Module):
    r"""Normalise features over their channels, then decorrelate the channels and bring them to one variance.

    .. math::  w(t) = \left( \Sigma + 0.1 \, \bar\sigma^2 I \right)^{-1/2}
               \left( \frac{t}{\lVert t \rVert_2} - \mu \right)

    with mean :math:`\mu` and covariance :math:`\Sigma` of the normalised features over the positions of good images,
    and their mean variance :math:`\bar\sigma^2`. The squared Euclidean norm is then a Mahalanobis distance. Until it is
    fitted, features are normalised only.

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
    def fit(self, features: Sequence[torch.Tensor]) -> None:
        """Set mean and covariance from maps of good images, each of shape ``(B, C, H, W)``, of any sizes."""
        directions = [F.normalize(maps.double(), dim=1).transpose(0, 1).flatten(1) for maps in features]
        count = sum(part.shape[1] for part in directions)
        mean = torch.stack([part.sum(dim=1) for part in directions]).sum(dim=0) / count
        centred = [part - mean[:, None] for part in directions]
        covariance = torch.stack([part @ part.T for part in centred]).sum(dim=0) / count
        variances, axes = torch.linalg.eigh(covariance)
        ridge = _RIDGE * variances.mean().clamp(min=_LEAST_VARIANCE)
        matrix = axes * (variances.clamp(min=0) + ridge).rsqrt() @ axes.T
        self.weight.copy_(matrix[..., None, None])
        self.bias.copy_(-matrix @ mean)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Whiten features of shape ``(B, C, H, W)``; in float32 also where the rest is in half precision."""
        with full_precision(features.device):
            return F.conv2d(F.normalize(features.to(self.weight.dtype), dim=1), self.weight, self.bias)
