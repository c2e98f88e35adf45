"""Anomaly map of MixedTeacher: distance maps of each layer, fused and smoothed."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.maps import direction, normalized_distance
from anomalib_mixedteacher.components.standardized_map import Fusion, StandardizedMap, coarse_size, resized
from anomalib_mixedteacher.components.whitening import Moments, Whitening, gather_moments


class AnomalyMapGenerator(StandardizedMap):
    r"""Turn feature distances into one anomaly map, at a quarter of the image's height and width.

    Each layer's distance is upsampled bilinearly. Then, by ``fusion``:

    - ``"standardized_sum"`` (ours): each layer has two Mahalanobis distances
      (:class:`~anomalib_mixedteacher.components.whitening.Whitening`), of what teacher and student differ by, and of
      the teacher's features from those of good images: a student may imitate a defect, too. Then see
      :class:`~anomalib_mixedteacher.components.standardized_map.StandardizedMap`.
    - ``"product"`` (the official code's): :math:`m_1 \cdot s \cdot m_2 / n` with the ResNet's map :math:`m_1` and the
      EfficientNet's :math:`m_2`, sums of their layers' distances, each divided by its number of positions; :math:`n` is
      the L2 norm of :math:`m_2` along the height, :math:`s = \max m_2 - \min m_2`, here of the image, not of the batch.

    The fused map is smoothed by a two-dimensional Gaussian. (The official code filters rows only, an effect of its
    squeezed batch of one, and fuses at the image's size.)

    Args:
        fusion: How the layers' maps become one.
        sigma: Standard deviation of the smoothing, in pixels of the image; 0 for none.
        channels: Channels of each teacher's maps, the ResNet's first; the paper's by default.

    Raises:
        ConfigurationError: If the fusion is unknown or sigma negative.
    """

    def __init__(
        self,
        fusion: Fusion = "standardized_sum",
        sigma: float = 4.0,
        channels: Sequence[Sequence[int]] = ((64, 128), (112, 320)),
    ) -> None:
        self.layers = tuple(map(len, channels))
        super().__init__(2 * sum(self.layers), fusion, sigma, normalized_distance)
        self.whitening = nn.ModuleList(Whitening(count) for count in 2 * list(chain(*channels)))

    def distance_maps(self, teacher: Features, student: Features, size: tuple[int, int]) -> torch.Tensor:
        """Compute each layer's distances, Mahalanobis distances where the fusion has them; see the base class.

        Those from the students come first, then those from good features.
        """
        if not self.needs_good_statistics:
            return super().distance_maps(teacher, student, size)
        return self._whitened_maps(_compared(teacher, student), size)

    def set_good_statistics(self, features: Iterable[tuple[Features, Features]], tile_size: int | None = None) -> None:
        """Fit the whitening, then set mean and deviation of the distances; see the base class."""
        self.set_good_comparisons([_compared(*pair) for pair in features], tile_size)

    def set_good_comparisons(self, compared: Sequence[Features], tile_size: int | None = None) -> None:
        """Set the statistics from what is to be whitened, one batch of good images after another.

        The distances of either half of the images are whitened by the other half, as those of new images are.
        """
        size = max((maps.shape[-2], maps.shape[-1]) for maps in compared[0])
        images = [[maps[i : i + 1] for maps in batch] for batch in compared for i in range(len(batch[0]))]
        halves = images[0::2], images[1::2] or images
        moments = [[gather_moments(maps) for maps in zip(*half, strict=True)] for half in halves]
        distances = []
        for fitted, judged in zip(moments, reversed(halves), strict=True):
            self._fit_whitening(fitted)
            distances += [self._whitened_maps(maps, size) for maps in judged]
        self._fit_whitening(*moments)
        self.set_good_distances(torch.cat(distances), tile_size)

    def _fit_whitening(self, *moments: Sequence[Moments]) -> None:
        for whitening, *of_layer in zip(self.whitening, *moments, strict=True):
            whitening.fit(*of_layer)

    def _whitened_maps(self, compared: Features, size: tuple[int, int]) -> torch.Tensor:
        pairs = zip(self.whitening, compared, strict=True)
        return resized([0.5 * whitening(maps).square().sum(dim=1) for whitening, maps in pairs], size)

    def product(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the official code's map, of shape ``(B, 1, H / 4, W / 4)``."""
        maps = self.distance_maps(teacher, student, coarse_size(image_size))
        weights = torch.tensor([1 / (t.shape[-2] * t.shape[-1]) for t in teacher]).to(maps).view(1, -1, 1, 1)
        resnet, efficientnet = (part.sum(dim=1, keepdim=True) for part in (maps * weights).split(self.layers, dim=1))
        scope = efficientnet.amax(dim=(-2, -1), keepdim=True) - efficientnet.amin(dim=(-2, -1), keepdim=True)
        return self.smooth(resnet * (scope * F.normalize(efficientnet, dim=-2)))


def _compared(teacher: Features, student: Features) -> Features:
    """Give what teacher and student differ by in each layer, then the teacher's directions themselves."""
    directions = [direction(maps) for maps in teacher]
    return [*(t - direction(s) for t, s in zip(directions, student, strict=True)), *directions]
