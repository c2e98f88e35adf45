"""Anomaly map of MSFD: a map per level, brought to the image by the level's receptive field, and multiplied."""

from collections.abc import Sequence

import torch
from torch import nn

from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.receptive_field import ReceptiveField
from anomalib_mixedteacher.components.upsampling import gaussian_upsample
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.msfd.loss import combined_distance


class AnomalyMapGenerator(nn.Module):
    r"""Turn feature distances into one anomaly map.

    .. math::  m = \prod_l G_l(d^l)

    with the :func:`combined_distance` :math:`d^l` of level :math:`l`, and :math:`G_l`, the up-sampling to the image by
    a Gaussian over the level's receptive field. Distance and up-sampling are stated in the abstract (Yao et al. 2021);
    the product and the Gaussian's width are ours. Nothing is smoothed after the up-sampling.

    Args:
        fields: Receptive field of each level's positions.
        cosine_weight: See :func:`combined_distance`; the same as in the loss.
        sigma_ratio: Standard deviation of the Gaussian, as a part of the receptive field's half-width. At a third the
            kernel ends at three standard deviations, but defects are washed out, since what a position answers to is
            mostly the middle of its field (the model's README).

    Raises:
        ConfigurationError: If ``sigma_ratio`` is not positive.
    """

    def __init__(
        self, fields: Sequence[ReceptiveField], cosine_weight: float = 0.5, sigma_ratio: float = 1 / 12
    ) -> None:
        super().__init__()
        if not sigma_ratio > 0:
            msg = f"sigma_ratio must be positive, not {sigma_ratio}."
            raise ConfigurationError(msg)
        self.fields = tuple(fields)
        self.cosine_weight = cosine_weight
        self.sigma_ratio = sigma_ratio

    def forward(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the anomaly map.

        Args:
            teacher: The teacher's feature maps, each of shape ``(B, C, H, W)``.
            student: The student's, same shapes.
            image_size: Height and width of the image.

        Returns:
            Anomaly map of shape ``(B, 1, *image_size)``, non-negative, higher where more anomalous.
        """
        levels = []
        for t, s, field in zip(teacher, student, self.fields, strict=True):
            distance = combined_distance(t, s, self.cosine_weight).unsqueeze(1)
            levels.append(gaussian_upsample(distance, image_size, field, self.sigma_ratio * field.size / 2))
        return torch.stack(levels).prod(dim=0)
