"""Gaussian smoothing of anomaly maps."""

from anomalib.models.components import GaussianBlur2d
from anomalib.models.components.filters.blur import compute_kernel_size
from torch import nn


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
