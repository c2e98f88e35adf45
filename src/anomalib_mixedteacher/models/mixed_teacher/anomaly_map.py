"""Anomaly map of MixedTeacher: a distance map per layer, fused and smoothed."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.maps import Distance, normalized_distance
from anomalib_mixedteacher.components.standardized_map import Fusion, StandardizedMap, coarse_size


class AnomalyMapGenerator(StandardizedMap):
    r"""Turn feature distances into one anomaly map, at a quarter of the image's height and width.

    Each layer's distance is upsampled bilinearly. Then, by ``fusion``:

    - ``"standardized_sum"`` (ours): see :class:`~anomalib_mixedteacher.components.standardized_map.StandardizedMap`.
    - ``"product"`` (the official code's): :math:`m_1 \cdot s \cdot m_2 / n` with the ResNet's map :math:`m_1` and the
      EfficientNet's :math:`m_2`, sums of their layers' distances, each divided by its number of positions; :math:`n` is
      the L2 norm of :math:`m_2` along the height, :math:`s = \max m_2 - \min m_2`, here of the image, not of the batch.

    The fused map is smoothed by a two-dimensional Gaussian. (The official code filters rows only, an effect of its
    squeezed batch of one, and fuses at the image's size.)

    Args:
        fusion: How the layers' maps become one.
        sigma: Standard deviation of the smoothing, in pixels of the image; 0 for none.
        layers: Number of maps of each teacher, the ResNet's first.
        distance: The distance of features, position by position; the paper's by default.

    Raises:
        ConfigurationError: If the fusion is unknown or sigma negative.
    """

    def __init__(
        self,
        fusion: Fusion = "standardized_sum",
        sigma: float = 4.0,
        layers: Sequence[int] = (2, 2),
        distance: Distance = normalized_distance,
    ) -> None:
        super().__init__(sum(layers), fusion, sigma, distance)
        self.layers = tuple(layers)

    def product(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the official code's map, of shape ``(B, 1, H / 4, W / 4)``."""
        maps = self.distance_maps(teacher, student, coarse_size(image_size))
        weights = torch.tensor([1 / (t.shape[-2] * t.shape[-1]) for t in teacher]).to(maps).view(1, -1, 1, 1)
        resnet, efficientnet = (part.sum(dim=1, keepdim=True) for part in (maps * weights).split(self.layers, dim=1))
        scope = efficientnet.amax(dim=(-2, -1), keepdim=True) - efficientnet.amin(dim=(-2, -1), keepdim=True)
        return self.smooth(resnet * (scope * F.normalize(efficientnet, dim=-2)))
