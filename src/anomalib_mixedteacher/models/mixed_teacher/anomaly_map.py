"""Anomaly map of MixedTeacher: a map per teacher, fused and smoothed."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.distance import normalized_distance
from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.smoothing import gaussian_smoothing
from anomalib_mixedteacher.components.upsampling import bilinear_upsample
from anomalib_mixedteacher.errors import ConfigurationError

Fusion = Literal["product", "sum", "normalized_product"]

# Maps are fused and smoothed at a quarter of the image's size: the finest feature map in use has an eighth of it, and
# full-size maps cost a tenth of the exported model's time (docs/edge.md).
STRIDE = 4


class AnomalyMapGenerator(nn.Module):
    """Turn feature distances into one anomaly map.

    A teacher's map is the sum of its layers' distance maps, upsampled bilinearly to a quarter of the image's height and
    width. Two maps become one by ``fusion``, are smoothed, and are upsampled bilinearly to the image:

    - ``"product"``, the official code's: each layer's distances are divided by its number of positions, so deeper
      layers weigh more; then ``m_1 * scope * m_2 / n``, where ``m_1`` is the ResNet's map, ``m_2`` the EfficientNet's,
      ``n`` the L2 norm of ``m_2`` along the height, column by column, and ``scope`` is ``max(m_2) - min(m_2)``. The
      official code takes the scope over the batch; here it is taken per image, so that a batch gives what its images
      give one by one.
    - ``"sum"``: ``m_1 + m_2``.
    - ``"normalized_product"``: ``m_1 * m_2``, each divided by its mean on good images. On a good position a factor is
      about 1, so the fused map has the same scale for every data set and every training run.

    The official code smooths along rows only, an effect of filtering a squeezed batch of one; here the Gaussian is
    two-dimensional for every fusion. It also fuses and smooths at the image's size; the norm of ``"product"`` then runs
    over four times the rows, which makes its maps half as large everywhere.

    Args:
        fusion: How the two maps become one.
        sigma: Standard deviation of the Gaussian smoothing, in pixels of the image.

    Raises:
        ConfigurationError: If the fusion is unknown or sigma negative.
    """

    good_mean: torch.Tensor

    def __init__(self, fusion: Fusion, sigma: float = 4.0) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            msg = f"Unknown fusion {fusion!r}; choose one of {', '.join(get_args(Fusion))}."
            raise ConfigurationError(msg)
        if sigma < 0:
            msg = f"sigma must be 0 (no smoothing) or positive, not {sigma}."
            raise ConfigurationError(msg)
        self.fusion = fusion
        self.smoothing = gaussian_smoothing(sigma / STRIDE)
        self.register_buffer("good_mean", torch.ones(2))

    @property
    def needs_good_statistics(self) -> bool:
        """Whether the fusion scales each teacher's map by its mean on good images."""
        return self.fusion == "normalized_product"

    def set_good_statistics(self, features: Iterable[tuple[Features, Features]]) -> None:
        """Set the mean of each teacher's map on good images.

        Args:
            features: The teachers' and the students' feature maps of one batch of good images after another.
        """
        means = []
        for teacher, student in features:
            size = max((maps[0].shape[-2], maps[0].shape[-1]) for maps in teacher.values())
            means.append(torch.stack([m.mean(dim=(1, 2, 3)) for m in self.teacher_maps(teacher, student, size)], dim=1))
        self.good_mean.copy_(torch.cat(means).mean(dim=0))

    def teacher_maps(self, teacher: Features, student: Features, size: tuple[int, int]) -> list[torch.Tensor]:
        """Compute each teacher's unfused map.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.
            size: Height and width of the maps to return.

        Returns:
            One map of shape ``(B, 1, *size)`` per teacher, non-negative.
        """
        maps = []
        for name, features in teacher.items():
            layers = []
            for t, s in zip(features, student[name], strict=True):
                distance = normalized_distance(t, s).unsqueeze(1)
                if self.fusion == "product":
                    distance = distance / (t.shape[-2] * t.shape[-1])
                layers.append(bilinear_upsample(distance, size))
            maps.append(torch.stack(layers).sum(dim=0))
        return maps

    def fuse(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Fuse the maps of the ResNet and the EfficientNet teacher.

        Args:
            maps: Two maps of shape ``(B, 1, H, W)``.

        Returns:
            Fused map of the same shape, not smoothed.
        """
        resnet, efficientnet = maps
        if self.fusion == "product":
            scope = efficientnet.amax(dim=(-2, -1), keepdim=True) - efficientnet.amin(dim=(-2, -1), keepdim=True)
            return resnet * (scope * F.normalize(efficientnet, dim=-2))
        if self.fusion == "sum":
            return resnet + efficientnet
        return (resnet / self.good_mean[0]) * (efficientnet / self.good_mean[1])

    def coarse(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the fused and smoothed map at a quarter of the image's size.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.
            image_size: Height and width of the image.

        Returns:
            Anomaly map of shape ``(B, 1, H / 4, W / 4)``, sides rounded up, non-negative.
        """
        height, width = image_size
        size = ((height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE)
        fused = self.fuse(self.teacher_maps(teacher, student, size))
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled(fused.device.type):
            return self.smoothing(fused)
        # A mixed-precision convolution would round the map to 8 bits, or in float16 to 0 or infinity.
        with torch.autocast(fused.device.type, enabled=False):
            return self.smoothing(fused)

    def forward(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the anomaly map.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.
            image_size: Height and width of the map to return.

        Returns:
            Anomaly map of shape ``(B, 1, *image_size)``, non-negative, higher where more anomalous.
        """
        return bilinear_upsample(self.coarse(teacher, student, image_size), image_size)
