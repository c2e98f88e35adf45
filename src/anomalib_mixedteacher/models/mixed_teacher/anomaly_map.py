"""Anomaly map of MixedTeacher: a distance map per layer, fused and smoothed."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.distance import normalized_distance
from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.smoothing import gaussian_smoothing, smoothing_reach
from anomalib_mixedteacher.components.upsampling import bilinear_resize
from anomalib_mixedteacher.errors import ConfigurationError

Fusion = Literal["standardized_sum", "product"]

STRIDE = 4  # of the fused map: the finest feature map has an eighth of the image's size
_LEAST_SHARE = 0.5  # of the mean over positions: a relative spread at least, lest a few good images divide by nearly 0
_LEAST_SPREAD = 0.01  # of the mean at a position, for a single good image or copies of one
_LEAST_DISTANCE = 1e-6  # whose logarithm is finite; what features in float32 differ by in any case


class AnomalyMapGenerator(nn.Module):
    r"""Turn feature distances into one anomaly map, at a quarter of the image's height and width.

    Each layer's distance map :math:`d^l` is upsampled bilinearly. Then, by ``fusion``:

    - ``"standardized_sum"`` (ours): :math:`\tfrac{1}{L} \sum_l \max(0, (\ln d^l_{ij} - \mu^l_{ij}) / \sigma^l_{ij})`,
      where :math:`\mu` and :math:`\sigma` are mean and standard deviation of :math:`\ln d` on good images at the same
      position, from the moments of :math:`d` as for a log-normal distribution. What is hard to imitate on every
      good image, as the padded border is, does not count; a teacher that alone sees a defect is heard.
    - ``"product"`` (the official code's): :math:`m_1 \cdot s \cdot m_2 / n` with the ResNet's map :math:`m_1` and the
      EfficientNet's :math:`m_2`, sums of their layers' distances, each divided by its number of positions; :math:`n` is
      the L2 norm of :math:`m_2` along the height, :math:`s = \max m_2 - \min m_2`, here of the image, not of the batch.

    The fused map is smoothed by a two-dimensional Gaussian. (The official code filters rows only, an effect of its
    squeezed batch of one, and fuses at the image's size.)

    Args:
        fusion: How the layers' maps become one.
        sigma: Standard deviation of the smoothing, in pixels of the image; 0 for none.
        layers: Number of maps of each teacher, the ResNet's first.

    Raises:
        ConfigurationError: If the fusion is unknown or sigma negative.
    """

    good_mean: torch.Tensor
    good_std: torch.Tensor

    def __init__(self, fusion: Fusion = "standardized_sum", sigma: float = 4.0, layers: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            msg = f"Unknown fusion {fusion!r}: choose one of {', '.join(get_args(Fusion))}."
            raise ConfigurationError(msg)
        if sigma < 0:
            msg = f"sigma must be 0 (no smoothing) or positive, not {sigma}."
            raise ConfigurationError(msg)
        self.fusion = fusion
        self.layers = tuple(layers)
        self.smoothing = gaussian_smoothing(sigma / STRIDE)
        self.min_side = STRIDE * smoothing_reach(sigma / STRIDE) + 1  # a reflected border is shorter than the map
        # of each layer, at the positions of the finest feature map; the same everywhere until they are known
        self.register_buffer("good_mean", torch.ones(sum(layers), 1, 1))
        self.register_buffer("good_std", torch.ones(sum(layers), 1, 1))

    @property
    def needs_good_statistics(self) -> bool:
        """Whether the fusion compares distances with those of good images."""
        return self.fusion == "standardized_sum"

    def set_good_statistics(self, features: Iterable[tuple[Features, Features]]) -> None:
        """Set mean and standard deviation of each layer's distance on good images, position by position.

        Args:
            features: The teachers' and the students' features of one batch of good images after another. Maps of
                images of other sizes are resized to those of the first.
        """
        size: tuple[int, int] | None = None
        parts = []
        for teacher, student in features:
            size = size or max((maps.shape[-2], maps.shape[-1]) for maps in teacher)
            parts.append(distance_maps(teacher, student, size))
        std, mean = torch.std_mean(torch.cat(parts), dim=0, correction=0)
        mean = mean.clamp(min=_LEAST_DISTANCE)
        spread = std / mean
        least = (_LEAST_SHARE * spread.mean(dim=(1, 2), keepdim=True)).clamp(min=_LEAST_SPREAD)
        self.good_mean = mean
        self.good_std = mean * torch.maximum(spread, least)

    def fuse(self, maps: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """Fuse distance maps.

        Args:
            maps: Distances of shape ``(B, L, H, W)``.
            positions: Number of positions of each layer's features.

        Returns:
            Map of shape ``(B, 1, H, W)``, not smoothed, non-negative.
        """
        if self.fusion == "product":
            weights = torch.tensor([1 / number for number in positions]).to(maps).view(1, -1, 1, 1)
            resnet, efficientnet = (
                part.sum(dim=1, keepdim=True) for part in (maps * weights).split(self.layers, dim=1)
            )
            scope = efficientnet.amax(dim=(-2, -1), keepdim=True) - efficientnet.amin(dim=(-2, -1), keepdim=True)
            return resnet * (scope * F.normalize(efficientnet, dim=-2))
        # resized before the logarithm, as the distances are: after it, steep borders would not cancel
        size = (maps.shape[-2], maps.shape[-1])
        mean, std = (bilinear_resize(good[None], size)[0] for good in (self.good_mean, self.good_std))
        log_mean, log_std = _log_normal(mean, std)
        return ((_log(maps) - log_mean) / log_std).clamp(min=0).mean(dim=1, keepdim=True)

    def forward(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the fused and smoothed map.

        Args:
            teacher: The teachers' features.
            student: The students' features.
            image_size: Height and width of the image.

        Returns:
            Anomaly map of shape ``(B, 1, H / 4, W / 4)``, sides rounded up, non-negative, higher where more anomalous.
        """
        height, width = image_size
        maps = distance_maps(teacher, student, ((height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE))
        fused = self.fuse(maps, [t.shape[-2] * t.shape[-1] for t in teacher])
        if torch.compiler.is_compiling():
            return self.smoothing(fused)
        # a mixed-precision convolution would round the map to 8 bits, or in float16 to 0 or infinity
        with torch.autocast(fused.device.type, enabled=False):
            return self.smoothing(fused)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("good_mean", "good_std"):  # as large as the maps of good images were
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def distance_maps(teacher: Features, student: Features, size: tuple[int, int]) -> torch.Tensor:
    """Compute each layer's distance at its own size, then resize the distances.

    Args:
        teacher: The teachers' features.
        student: The students' features.
        size: Height and width of the maps to return.

    Returns:
        Maps of shape ``(B, L, *size)``, non-negative.
    """
    pairs = zip(teacher, student, strict=True)
    return torch.cat([bilinear_resize(normalized_distance(t, s).unsqueeze(1), size) for t, s in pairs], dim=1)


def _log(distances: torch.Tensor) -> torch.Tensor:
    return distances.clamp(min=_LEAST_DISTANCE).log()


def _log_normal(mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of ``ln d`` for a log-normal ``d`` of given mean and standard deviation."""
    variance = (std / mean.clamp(min=_LEAST_DISTANCE)).square().log1p()
    return _log(mean) - variance / 2, variance.sqrt()
