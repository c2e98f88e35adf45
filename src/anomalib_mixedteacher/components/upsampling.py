"""Bringing maps and images to another size."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


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
