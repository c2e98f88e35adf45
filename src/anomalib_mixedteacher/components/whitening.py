"""Whitening: what varies least on good images counts as much as what varies most."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.maps import full_precision

_RIDGE = 0.1  # of the mean second moment: what hardly differs on good images is heard, noise and rounding are not
_LEAST_MOMENT = 1e-8  # of images that show nothing


class Whitening(nn.Module):
    r"""Bring the channels of a difference to one size on good images, and decorrelate them.

    .. math::  w(r) = \left( M + 0.1 \, \bar m I \right)^{-1/2} r

    with the second moments :math:`M = \operatorname{E} r r^\top` over the positions of good images and the mean
    :math:`\bar m` of their diagonal. The squared Euclidean norm is then a Mahalanobis distance. Until it is fitted,
    differences stay as they are.

    Args:
        channels: Number of channels.
    """

    weight: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(channels)[..., None, None])

    @torch.no_grad()
    def fit(self, differences: Sequence[torch.Tensor]) -> None:
        """Set the second moments from maps of good images, each of shape ``(B, C, H, W)``, of any sizes.

        From few images the moments fit these images best: their own whitened differences are smaller than those of
        others.
        """
        # not every device has float64
        parts = [maps.to("cpu", torch.float64).transpose(0, 1).flatten(1) for maps in differences]
        count = sum(part.shape[1] for part in parts)
        variances, axes = torch.linalg.eigh(torch.stack([part @ part.T for part in parts]).sum(dim=0) / count)
        ridge = _RIDGE * variances.mean().clamp(min=_LEAST_MOMENT)
        matrix = axes * (variances.clamp(min=0) + ridge).rsqrt() @ axes.T
        self.weight.copy_(matrix[..., None, None])

    def forward(self, differences: torch.Tensor) -> torch.Tensor:
        """Whiten differences of shape ``(B, C, H, W)``; in float32 also where the rest is in half precision."""
        with full_precision(differences.device):
            return F.conv2d(differences.to(self.weight.dtype), self.weight)
