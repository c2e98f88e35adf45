"""Anomaly map of MSFD: a map per level, brought to the image by the level's receptive field, and combined."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.receptive_field import ReceptiveField
from anomalib_mixedteacher.components.upsampling import bilinear_upsample, gaussian_upsample
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.msfd.loss import check_cosine_weight, combined_distance

Combination = Literal["sum", "product"]
Upsampling = Literal["gaussian", "bilinear"]


class AnomalyMapGenerator(nn.Module):
    """Turn feature distances into one anomaly map.

    A level's map is its :func:`combined_distance`, up-sampled to the image. The abstract (Yao et al. 2021) states the
    combined distance and an up-sampling by a Gaussian kernel over the receptive field. It states neither the width of
    the Gaussian nor how levels are combined: both are our choice and are arguments.

    Nothing is smoothed after the up-sampling; the Gaussian of each level is the smoothing.

    Args:
        fields: Receptive field of each level's positions.
        cosine_weight: See :func:`combined_distance`; the same as in the loss.
        combination: ``"sum"`` or ``"product"`` of the levels' maps. A product is high only where every level's map
            is, and has no scale of its own: with three levels it goes with the third power of the distances.
        upsampling: ``"gaussian"`` over the receptive field, or ``"bilinear"``, which takes no notice of it.
        sigma_ratio: Standard deviation of the Gaussian, as a part of the receptive field's half-width. At a third the
            kernel ends at three standard deviations, but defects are washed out: a twelfth was better in every
            measurement (the model's README), since what a position answers to is mostly the middle of its field.

    Raises:
        ConfigurationError: If an argument is not one of its choices or out of its range.
    """

    def __init__(
        self,
        fields: Sequence[ReceptiveField],
        cosine_weight: float = 0.5,
        combination: Combination = "product",
        upsampling: Upsampling = "gaussian",
        sigma_ratio: float = 1 / 12,
    ) -> None:
        super().__init__()
        check_cosine_weight(cosine_weight)
        if combination not in get_args(Combination):
            msg = f"Unknown combination {combination!r}; choose one of {', '.join(get_args(Combination))}."
            raise ConfigurationError(msg)
        if upsampling not in get_args(Upsampling):
            msg = f"Unknown upsampling {upsampling!r}; choose one of {', '.join(get_args(Upsampling))}."
            raise ConfigurationError(msg)
        if not sigma_ratio > 0:
            msg = f"sigma_ratio must be positive, not {sigma_ratio}: choose upsampling='bilinear' for no smoothing."
            raise ConfigurationError(msg)
        self.fields = tuple(fields)
        self.cosine_weight = cosine_weight
        self.combination = combination
        self.upsampling = upsampling
        self.sigma_ratio = sigma_ratio

    def forward(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the anomaly map.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.
            image_size: Height and width of the image.

        Returns:
            Anomaly map of shape ``(B, 1, *image_size)``, non-negative, higher where more anomalous.
        """
        pairs = [pair for name, maps in teacher.items() for pair in zip(maps, student[name], strict=True)]
        levels = []
        for (t, s), field in zip(pairs, self.fields, strict=True):
            distance = combined_distance(t, s, self.cosine_weight).unsqueeze(1)
            if self.upsampling == "gaussian":
                sigma = self.sigma_ratio * field.size / 2
                levels.append(gaussian_upsample(distance, image_size, field, sigma))
            else:
                levels.append(bilinear_upsample(distance, image_size))
        maps = torch.stack(levels)
        return maps.sum(dim=0) if self.combination == "sum" else maps.prod(dim=0)
