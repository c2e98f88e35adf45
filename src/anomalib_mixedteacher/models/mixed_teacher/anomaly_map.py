"""Anomaly map of MixedTeacher: a map per teacher, fused and smoothed."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.distance import normalized_distance
from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.smoothing import gaussian_smoothing, smoothing_reach
from anomalib_mixedteacher.components.upsampling import bilinear_upsample
from anomalib_mixedteacher.errors import ConfigurationError

Fusion = Literal["product", "sum", "normalized_product", "standardized_sum"]

# Maps are fused and smoothed at a quarter of the image's size: the finest feature map in use has an eighth of it, and
# full-size maps cost a tenth of the exported model's time (docs/edge.md).
STRIDE = 4
_LEAST_SHARE = 0.5  # of the mean over positions: a relative spread at least, lest a few good images divide by nearly 0
_LEAST_SPREAD = 0.01  # of the mean at a position, for a single good image or copies of one
_LEAST_DISTANCE = 1e-6  # whose logarithm is finite; what features in float32 differ by in any case


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
    - ``"standardized_sum"``: the mean over all layers of ``max(0, (ln d - mu) / s)``, where ``d`` is a layer's distance
      map, and ``mu`` and ``s`` are mean and standard deviation of ``ln d`` on good images at the same position, derived
      from the moments of ``d`` there as for a log-normal distribution. What is hard to imitate on every good image, as
      the padded border is, does not count then, and a teacher that sees a defect alone is heard. Logarithms, since
      distances are positive and skewed: without them a few good images far out hide defects at their position, and
      a gross defect, a hundred times as far out as a fine one, makes that one look good where scores are scaled by
      the highest.

    The official code smooths along rows only, an effect of filtering a squeezed batch of one; here the Gaussian is
    two-dimensional for every fusion. It also fuses and smooths at the image's size; the norm of ``"product"`` then runs
    over four times the rows, which makes its maps half as large everywhere.

    Args:
        fusion: How the two maps become one.
        sigma: Standard deviation of the Gaussian smoothing, in pixels of the image.
        layers: Number of layers of each teacher.

    Raises:
        ConfigurationError: If the fusion is unknown or sigma negative.
    """

    good_mean: torch.Tensor
    good_std: torch.Tensor

    def __init__(self, fusion: Fusion, sigma: float = 4.0, layers: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            msg = f"Unknown fusion {fusion!r}; choose one of {', '.join(get_args(Fusion))}."
            raise ConfigurationError(msg)
        if sigma < 0:
            msg = f"sigma must be 0 (no smoothing) or positive, not {sigma}."
            raise ConfigurationError(msg)
        self.fusion = fusion
        self.sigma = sigma
        self.smoothing = gaussian_smoothing(sigma / STRIDE)
        self.layers = tuple(layers)
        # Of each layer, those of the ResNet first, at the positions of the finest feature map. Until they are known
        # they are the same everywhere.
        self.register_buffer("good_mean", torch.ones(sum(layers), 1, 1))
        self.register_buffer("good_std", torch.ones(sum(layers), 1, 1))

    @property
    def reach(self) -> int:
        """How far the smoothing reaches in pixels of the image, whose sides have to be longer."""
        return STRIDE * smoothing_reach(self.sigma / STRIDE)

    @property
    def needs_good_statistics(self) -> bool:
        """Whether the fusion compares maps with those of good images."""
        return self.fusion in {"normalized_product", "standardized_sum"}

    def set_good_statistics(self, features: Iterable[tuple[Features, Features]]) -> None:
        """Set mean and standard deviation of each layer's distance on good images, position by position.

        Args:
            features: The teachers' and the students' feature maps of one batch of good images after another. Maps of
                images of other sizes are resized to those of the first.
        """
        size: tuple[int, int] | None = None
        parts = []
        for teacher, student in features:
            size = size or max((maps[0].shape[-2], maps[0].shape[-1]) for maps in teacher.values())
            parts.append(torch.cat(list(chain(*self.layer_maps(teacher, student, size))), dim=1))
        maps = torch.cat(parts)
        std, mean = torch.std_mean(maps, dim=0, correction=0)
        mean = mean.clamp(min=_LEAST_DISTANCE)
        spread = std / mean
        least = (_LEAST_SHARE * spread.mean(dim=(1, 2), keepdim=True)).clamp(min=_LEAST_SPREAD)
        self.good_mean = mean.to(self.good_mean)
        self.good_std = (mean * torch.maximum(spread, least)).to(self.good_std)

    def layer_maps(self, teacher: Features, student: Features, size: tuple[int, int]) -> list[list[torch.Tensor]]:
        """Compute each layer's distance map.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.
            size: Height and width of the maps to return.

        Returns:
            One list of maps of shape ``(B, 1, *size)`` per teacher, non-negative.
        """
        return [
            [
                bilinear_upsample(normalized_distance(t, s).unsqueeze(1), size)
                for t, s in zip(maps, student[name], strict=True)
            ]
            for name, maps in teacher.items()
        ]

    def fuse(self, layers: list[list[torch.Tensor]], positions: list[list[int]]) -> torch.Tensor:
        """Fuse the layers' maps of the ResNet and the EfficientNet teacher.

        Args:
            layers: Two lists of maps of shape ``(B, 1, H, W)``.
            positions: Number of positions of each layer's features.

        Returns:
            Fused map of the same shape, not smoothed.
        """
        if self.fusion == "standardized_sum":
            maps = torch.cat(list(chain(*layers)), dim=1)
            # resized before the logarithm, as the distances are: after it, steep borders would not cancel
            mean, std = _log_normal(*(_resized(good, maps.shape[-2:]) for good in (self.good_mean, self.good_std)))
            return ((_log(maps) - mean) / std).clamp(min=0).mean(dim=1, keepdim=True)
        if self.fusion == "product":
            layers = [[m / n for m, n in zip(*pair, strict=True)] for pair in zip(layers, positions, strict=True)]
        resnet, efficientnet = (torch.stack(maps).sum(dim=0) for maps in layers)
        if self.fusion == "product":
            scope = efficientnet.amax(dim=(-2, -1), keepdim=True) - efficientnet.amin(dim=(-2, -1), keepdim=True)
            return resnet * (scope * F.normalize(efficientnet, dim=-2))
        if self.fusion == "sum":
            return resnet + efficientnet
        good = self.good_mean.mean(dim=(1, 2)).split(self.layers)
        return (resnet / good[0].sum()) * (efficientnet / good[1].sum())

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
        positions = [[t.shape[-2] * t.shape[-1] for t in maps] for maps in teacher.values()]
        fused = self.fuse(self.layer_maps(teacher, student, size), positions)
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        mean, std = f"{prefix}good_mean", f"{prefix}good_std"
        if mean in state_dict and std not in state_dict:  # version 0.1 wrote one mean for each teacher
            counts = torch.tensor(self.layers)
            shares = (state_dict[mean].cpu() / counts).repeat_interleave(counts)
            state_dict |= {mean: shares[:, None, None], std: torch.ones(len(shares), 1, 1)}
        for name, key in (("good_mean", mean), ("good_std", std)):  # as large as the maps of good images were
            if key in state_dict:
                setattr(self, name, torch.empty_like(getattr(self, name)).resize_(state_dict[key].shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _log(distances: torch.Tensor) -> torch.Tensor:
    return distances.clamp(min=_LEAST_DISTANCE).log()


def _log_normal(mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of ``ln d`` for a log-normal ``d`` of given mean and standard deviation."""
    variance = (std / mean.clamp(min=_LEAST_DISTANCE)).square().log1p()
    return _log(mean) - variance / 2, variance.sqrt()


def _resized(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize maps of shape ``(L, h, w)``."""
    return bilinear_upsample(maps.unsqueeze(1), (size[0], size[1])).squeeze(1)
