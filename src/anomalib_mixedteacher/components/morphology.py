"""Morphological opening of anomaly maps."""

import torch
from torch.nn import functional as F


def opening(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Open maps with a flat square: bright spots narrower than the square vanish, wider ones keep their shape.

    Outside the map nothing limits the erosion and nothing feeds the dilation, so the result never exceeds the map.

    Args:
        maps: Maps of shape ``(B, 1, H, W)``.
        side: Side of the square in pixels, odd; 1 leaves the maps as they are.

    Returns:
        Opened maps of the same shape, nowhere above ``maps``.
    """
    # max_pool2d pads with minus infinity, and so the erosion with plus infinity
    eroded = -F.max_pool2d(-maps, side, stride=1, padding=side // 2)
    return F.max_pool2d(eroded, side, stride=1, padding=side // 2)
