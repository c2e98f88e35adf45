"""Anomaly map of MSFD: a map per level, brought to the image and combined."""

from collections.abc import Sequence
from functools import partial

import torch

from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.standardized_map import Fusion, StandardizedMap
from anomalib_mixedteacher.models.msfd.loss import combined_distance
from anomalib_mixedteacher.models.msfd.upsampling import ReceptiveField, gaussian_upsample


class AnomalyMapGenerator(StandardizedMap):
    r"""Turn feature distances into one anomaly map.

    With the :func:`combined_distance` :math:`d^l` of level :math:`l`, by ``fusion``:

    - ``"standardized_sum"`` (ours): see :class:`~anomalib_mixedteacher.components.standardized_map.StandardizedMap`;
      smoothed, at a quarter of the image's height and width.
    - ``"product"``: :math:`\prod_l G_l(d^l)`, where :math:`G_l` is the abstract's up-sampling to the image by a
      Gaussian over the level's receptive field (Yao et al. 2021); the product is ours. It is not smoothed again.

    Args:
        fields: Receptive field of each level's positions.
        cosine_weight: See :func:`combined_distance`; the same as in the loss.
        fusion: How the levels' maps become one.
        sigma: Standard deviation of the smoothing, in pixels of the image; 0 for none.

    Raises:
        ConfigurationError: If the fusion is unknown or sigma negative.
    """

    width = 1 / 12
    """Standard deviation of the Gaussian, as a part of the receptive field's half-width (ours).

    At a third the kernel would end at three standard deviations, but defects are washed out, since what a position
    answers to is mostly the middle of its field (the model's README).
    """

    def __init__(
        self,
        fields: Sequence[ReceptiveField],
        cosine_weight: float = 0.5,
        fusion: Fusion = "standardized_sum",
        sigma: float = 4.0,
    ) -> None:
        super().__init__(len(fields), fusion, sigma, partial(combined_distance, cosine_weight=cosine_weight))
        self.fields = tuple(fields)

    def product(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the product of the levels' maps, of shape ``(B, 1, H, W)``."""
        levels = [
            gaussian_upsample(self.distance(t, s).unsqueeze(1), image_size, field, self.width * field.size / 2)
            for t, s, field in zip(teacher, student, self.fields, strict=True)
        ]
        return torch.stack(levels).prod(dim=0)
