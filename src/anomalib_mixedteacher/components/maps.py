"""Distances between a teacher's and a student's features, and what brings maps of them to size and smooths them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from anomalib.models.components import GaussianBlur2d
from anomalib.models.components.filters.blur import compute_kernel_size
from torch import nn
from torch.nn import functional as F

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes features of teacher and student, ``(B, C, H, W)``, and gives ``(B, H, W)``, non-negative."""


def normalized_distance(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    r"""Half the squared Euclidean distance of channel-normalised features, position by position.

    .. math::  d_{ij} = \tfrac{1}{2} \left\lVert \frac{t_{ij}}{\lVert t_{ij} \rVert_2}
               - \frac{s_{ij}}{\lVert s_{ij} \rVert_2} \right\rVert_2^2 = 1 - \cos(t_{ij}, s_{ij})

    This is the per-position loss of STFPM (Wang et al. 2021, eq. 1), which MixedTeacher takes over.

    Half-precision features are compared in float32: a squared norm of 320 channels overflows float16.

    Args:
        teacher: Teacher features of shape ``(B, C, H, W)``.
        student: Student features of the same shape.

    Returns:
        Distance of shape ``(B, H, W)``, in ``[0, 2]``; ``[0, 1]`` where no feature is negative.
    """
    return 0.5 * (direction(teacher) - direction(student)).square().sum(dim=1)


def direction(features: torch.Tensor) -> torch.Tensor:
    """Channel-normalised features, of their shape ``(B, C, H, W)``; in float32 at least."""
    return F.normalize(_single_precision(features), dim=1)


def euclidean_distance(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    r"""Squared Euclidean distance of the features as they are, per channel, position by position.

    .. math::  d_{ij} = \frac{1}{C} \left\lVert t_{ij} - s_{ij} \right\rVert_2^2

    Unlike :func:`normalized_distance` it sees the features' length. The division by the number of channels makes it
    comparable between levels.

    Half-precision features are compared in float32.

    Args:
        teacher: Teacher features of shape ``(B, C, H, W)``.
        student: Student features of the same shape.

    Returns:
        Distance of shape ``(B, H, W)``, non-negative and without bound.
    """
    return (_single_precision(teacher) - _single_precision(student)).square().mean(dim=1)


def _single_precision(features: torch.Tensor) -> torch.Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


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


def gaussian_smoothing(sigma: float) -> nn.Module:
    """Two-dimensional Gaussian filter for maps of shape ``(B, 1, H, W)``, as two one-dimensional passes.

    anomalib's ``GaussianBlur2d`` holds a square kernel; at sigma 4 that is 1089 multiplications a pixel, where
    a column and a row pass give the same map with 66. The border is reflected, so a constant map stays constant.

    Args:
        sigma: Standard deviation in pixels of the map; 0 leaves the map as it is.

    Returns:
        Module without parameters, exportable with dynamic sizes. The map's sides must exceed ``4 * sigma``.
    """
    if sigma == 0:
        return nn.Identity()
    size = compute_kernel_size(sigma)
    passes = [GaussianBlur2d(sigma=(sigma, sigma), kernel_size=shape) for shape in ((size, 1), (1, size))]
    for blur in passes:
        blur.register_buffer("kernel", blur.kernel, persistent=False)  # derived from sigma: not for checkpoints
    return nn.Sequential(*passes)


def smoothing_reach(sigma: float) -> int:
    """How far :func:`gaussian_smoothing` reaches; it reflects a map at its border, so sides have to be longer."""
    return int(4 * sigma + 0.5)
