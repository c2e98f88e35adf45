"""Bringing maps and images to another size."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from anomalib_mixedteacher.components.receptive_field import ReceptiveField

_LEAST_SPREAD = 1e-3  # exp(-1 / _LEAST_SPREAD) is 0 in float64: every narrower Gaussian has the same weights


def bilinear_resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize maps or images bilinearly, with antialiasing where they shrink (``align_corners=False``).

    Two matrix products: OpenVINO's ``Interpolate`` takes ten times as long for a map of one channel, prepares anew for
    each new size of images, and has no antialiasing of this kind.

    Args:
        maps: Floating-point maps of shape ``(B, C, H, W)``.
        size: Height and width to resize to.

    Returns:
        Maps of shape ``(B, C, *size)``.
    """
    height, width = maps.shape[-2:]
    # Sizes known at export time (integers, not symbols) that need no resize leave nothing in the graph.
    if isinstance(height, int) and isinstance(width, int) and (height, width) == tuple(size):
        return maps
    rows = _interpolation_matrix(height, size[0], maps)
    columns = _interpolation_matrix(width, size[1], maps)
    with full_precision(maps.device):
        return rows @ maps @ columns.T


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switch mixed precision off, which would round a map to 8 bits, or in float16 to 0 or infinity."""
    return nullcontext() if torch.compiler.is_compiling() else torch.autocast(device.type, enabled=False)


def _interpolation_matrix(source: int, target: int, like: torch.Tensor) -> torch.Tensor:
    """Build the ``(target, source)`` matrix of triangular weights, as wide as the scale when shrinking.

    In integers, all lengths multiplied by ``2 * target``: where OpenVINO computes in bfloat16, pixel positions lose
    their low bits, and rows of the matrix could become empty.
    """
    index = torch.arange(source, device=like.device)
    size = index[-1] + 1  # a tensor, since the size may be a symbol in the exported graph
    positions = (2 * index + 1) * target
    centers = (2 * torch.arange(target, device=like.device) + 1) * size
    width = 2 * size.clamp(min=target)
    weights = (width - (positions[None, :] - centers[:, None]).abs()).clamp(min=0).to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


def gaussian_upsample(maps: torch.Tensor, size: tuple[int, int], field: "ReceptiveField", sigma: float) -> torch.Tensor:
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


def _gaussian_matrix(
    source: int, target: int, field: "ReceptiveField", sigma: float, like: torch.Tensor
) -> torch.Tensor:
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
