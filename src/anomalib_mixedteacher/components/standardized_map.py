"""Anomaly maps of distances that are compared with those of good images at the same position."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from anomalib.data import InferenceBatch
from numpy.typing import NDArray
from torch import nn

from anomalib_mixedteacher.components.distillation_model import MIN_SIDE, DistillationModel, Features
from anomalib_mixedteacher.components.maps import (
    Distance,
    bilinear_resize,
    full_precision,
    gaussian_smoothing,
    smoothing_reach,
)
from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.components.tiles import Tiles, as_prediction, join_tiles, stack_predictions
from anomalib_mixedteacher.errors import ConfigurationError
from mixedteacher_edge.tiling import STRIDE, Place, Tiling, web_profile

Fusion = Literal["standardized_sum", "product"]
Standardize = Literal["tile", "position"]

_LEAST_SHARE = 0.5  # of the mean over positions: a relative spread at least, lest a few good images divide by nearly 0
_LEAST_SPREAD = 0.01  # of the mean at a position, for a single good image or copies of one
_BORDER = 32  # pixels from a tile's border on, in which the padding is felt
_LEAST_DISTANCE = 1e-6  # whose logarithm is finite; what features in float32 differ by in any case


class StandardizedMap(nn.Module):
    r"""Turn the distances of several layers into one map, at a quarter of the image's height and width.

    .. math::  m_{ij} = \tfrac{1}{L} \sum_l \max(0, (\ln d^l_{ij} - \mu^l_{ij}) / \sigma^l_{ij})

    with each layer's distance :math:`d^l`, resized bilinearly, and mean :math:`\mu` and standard deviation
    :math:`\sigma` of :math:`\ln d` on good images at the same position, from the moments of :math:`d` as for a
    log-normal distribution. What is hard to imitate on every good image, as the padded border is, does not count; a
    layer that alone sees a defect is heard. That is the fusion ``"standardized_sum"`` (ours). A model defines
    :meth:`product`, its paper's fusion.

    Args:
        layers: Number of layers.
        fusion: How the layers' maps become one.
        sigma: Standard deviation of the map's Gaussian smoothing, in pixels of the image; 0 for none.
        distance: The distance of features, position by position.

    Raises:
        ConfigurationError: If the fusion is unknown or sigma negative.
    """

    good_mean: torch.Tensor
    good_std: torch.Tensor

    def __init__(self, layers: int, fusion: Fusion, sigma: float, distance: Distance) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            msg = f"Unknown fusion {fusion!r}: choose one of {', '.join(get_args(Fusion))}."
            raise ConfigurationError(msg)
        if sigma < 0:
            msg = f"sigma must be 0 (no smoothing) or positive, not {sigma}."
            raise ConfigurationError(msg)
        self.fusion, self.distance = fusion, distance
        self.smoothing = gaussian_smoothing(sigma / STRIDE)
        self.min_side = STRIDE * smoothing_reach(sigma / STRIDE) + 1  # a reflected border is shorter than the map
        # of each layer, at the positions of the finest feature map; the same everywhere until they are known
        self.register_buffer("good_mean", torch.ones(layers, 1, 1))
        self.register_buffer("good_std", torch.ones(layers, 1, 1))

    @property
    def needs_good_statistics(self) -> bool:
        """Whether the fusion compares distances with those of good images."""
        return self.fusion == "standardized_sum"

    def forward(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the fused and smoothed map.

        Args:
            teacher: The teachers' feature maps, each of shape ``(B, C, H, W)``.
            student: The students', same shapes.
            image_size: Height and width of the image.

        Returns:
            Anomaly map of shape ``(B, 1, H / 4, W / 4)``, sides rounded up, or of the product's; non-negative, higher
            where more anomalous.
        """
        if self.fusion == "product":
            return self.product(teacher, student, image_size)
        return self.smooth(self.standardized_sum(self.distance_maps(teacher, student, coarse_size(image_size))))

    @abstractmethod
    def product(self, teacher: Features, student: Features, image_size: tuple[int, int]) -> torch.Tensor:
        """Compute the map of the model's paper; see :meth:`forward`."""

    def distance_maps(self, teacher: Features, student: Features, size: tuple[int, int]) -> torch.Tensor:
        """Compute each layer's distance at its own size, then resize the distances.

        Args:
            teacher: The teachers' features.
            student: The students' features.
            size: Height and width of the maps to return.

        Returns:
            Maps of shape ``(B, L, *size)``, non-negative.
        """
        return resized([self.distance(t, s) for t, s in zip(teacher, student, strict=True)], size)

    def set_good_statistics(self, features: Iterable[tuple[Features, Features]], tile_size: int | None = None) -> None:
        """Set mean and standard deviation of each layer's distance on good images, position by position.

        Args:
            features: The teachers' and the students' features of one batch of good images after another. Maps of
                images of other sizes are resized to those of the first.
            tile_size: Side in pixels of the images, if they are tiles, which lie anywhere: positions farther than 32
                pixels from the border then have the moments of all of them, and there is no seam between tiles.
        """
        size: tuple[int, int] | None = None
        parts = []
        for teacher, student in features:
            size = size or max((maps.shape[-2], maps.shape[-1]) for maps in teacher)
            parts.append(self.distance_maps(teacher, student, size))
        self.set_good_distances(torch.cat(parts), tile_size)

    def set_good_distances(self, maps: torch.Tensor, tile_size: int | None = None) -> None:
        """Set the statistics from the distances themselves, of shape ``(N, L, H, W)``; see above."""
        std, mean = torch.std_mean(maps, dim=0, correction=0)
        if tile_size is not None and tile_size > 2 * _BORDER:
            borders = (_BORDER * side // tile_size for side in mean.shape[-2:])
            inside = (slice(None), *(slice(border, -border or None) for border in borders))
            of_all = mean[inside].mean(dim=(1, 2), keepdim=True)
            square = (std[inside].square() + (mean[inside] - of_all).square()).mean(dim=(1, 2), keepdim=True)
            mean[inside], std[inside] = of_all, square.sqrt()
        mean = mean.clamp(min=_LEAST_DISTANCE)
        spread = std / mean
        least = (_LEAST_SHARE * spread.mean(dim=(1, 2), keepdim=True)).clamp(min=_LEAST_SPREAD)
        self.good_mean = mean
        self.good_std = mean * torch.maximum(spread, least)

    def standardized_sum(self, maps: torch.Tensor) -> torch.Tensor:
        """Fuse distances of shape ``(B, L, H, W)`` into a map of shape ``(B, 1, H, W)``, not smoothed, non-negative."""
        # resized before the logarithm, as the distances are: after it, steep borders would not cancel
        size = (maps.shape[-2], maps.shape[-1])
        mean, std = (bilinear_resize(good[None], size)[0] for good in (self.good_mean, self.good_std))
        variance = (std / mean.clamp(min=_LEAST_DISTANCE)).square().log1p()
        log_mean = _log(mean) - variance / 2  # of a log-normal distribution, as is the variance
        return ((_log(maps) - log_mean) / variance.sqrt()).clamp(min=0).mean(dim=1, keepdim=True)

    def smooth(self, maps: torch.Tensor) -> torch.Tensor:
        """Smooth maps of shape ``(B, 1, H, W)``."""
        with full_precision(maps.device):
            return self.smoothing(maps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("good_mean", "good_std"):  # as large as the maps of good images were
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class StandardizedMapModel(DistillationModel):
    """A model whose ``anomaly_map_generator`` is a :class:`StandardizedMap`.

    Args:
        teachers: See :class:`DistillationModel`.
        students: See :class:`DistillationModel`.
        generator: The anomaly map generator.
        tile_size: Side in pixels of the tiles into which images are cut; ``None`` takes them whole.
        standardize: What good images are compared by where images are cut: the position within a ``"tile"``, or that
            and the ``"position"`` across the image's width, as of a web whose edges look otherwise than its middle.

    Raises:
        ConfigurationError: If images are cut, and the tiles are not a multiple of 64 or the fusion has no standardised
            map; if ``standardize`` is unknown, or ``"position"`` and images are not cut.
    """

    good_profile: torch.Tensor  # across the image's width; empty until it is known, or where it is not used

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        students: Mapping[str, nn.Module],
        generator: StandardizedMap,
        tile_size: int | None = None,
        standardize: Standardize = "tile",
    ) -> None:
        super().__init__(teachers, students)
        self.anomaly_map_generator = generator
        self.min_side = max(MIN_SIDE, generator.min_side)
        self.tile_size, self.standardize = tile_size, standardize
        self.register_buffer("good_profile", torch.empty(0))
        if standardize not in get_args(Standardize):
            msg = f"Unknown standardize {standardize!r}: choose one of {', '.join(get_args(Standardize))}."
            raise ConfigurationError(msg)
        if tile_size is None and standardize != "tile":
            msg = f"standardize={standardize} is for images that are cut into tiles: give tile_size, or leave it out."
            raise ConfigurationError(msg)
        if tile_size is not None:
            Tiling(tile_size)
            if not generator.needs_good_statistics:
                msg = f"fusion={generator.fusion} would show the borders of tiles: use standardized_sum with tile_size."
                raise ConfigurationError(msg)

    @property
    def tiles(self) -> Tiles | None:
        """How images are cut; ``None`` if they are not."""
        if self.tile_size is None:
            return None
        return Tiles(Tiling(self.tile_size), self.good_profile if self.good_profile.numel() else None)

    def predict(self, teacher: Features, student: Features, images: torch.Tensor) -> InferenceBatch:
        """Compute predictions; the score is the maximum of the map before its upsampling to the image.

        The map of tiles is not upsampled: it has a quarter of their height and width.
        """
        image_size = (images.shape[-2], images.shape[-1])
        coarse = self.anomaly_map_generator(teacher, student, image_size)
        fine = bilinear_resize(coarse, image_size) if self.tile_size is None else coarse
        return InferenceBatch(anomaly_map=fine, pred_score=coarse.amax(dim=(-2, -1)))

    def forward(self, images: torch.Tensor) -> tuple[Features, Features] | InferenceBatch:
        """Compute features in training mode, predictions in evaluation mode; an exported graph takes one tile."""
        if self.training or self.tile_size is None or torch.compiler.is_compiling():
            return super().forward(images)
        return stack_predictions([as_prediction(self.joined_map(image), image) for image in images])

    def joined_map(
        self, image: torch.Tensor, predict: Callable[[torch.Tensor, Sequence[Place]], torch.Tensor] | None = None
    ) -> NDArray[np.float32]:
        """Compute the map of an image from its tiles; see :func:`~.tiles.join_tiles`."""
        assert self.tiles is not None  # there are tiles
        return join_tiles(image, self.tiles, predict or self._tile_maps)

    @torch.no_grad()
    def set_good_profile(self, images: Iterable[torch.Tensor]) -> None:
        """Set what good images reach across their width.

        Args:
            images: Normalised good images of shape ``(3, H, W)``, of one width.
        """
        self.good_profile = self.good_profile.new_empty(0)
        assert self.tiles is not None  # there are tiles
        profile = web_profile((self.joined_map(image) for image in images), self.tiles.tiling)
        self.good_profile = torch.from_numpy(profile).to(self.good_profile)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if (saved := state_dict.get(f"{prefix}good_profile")) is not None:  # as wide as the good images were
            self.good_profile = self.good_profile.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _tile_maps(self, tiles: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        del places
        maps = self.predict(self.teacher_features(tiles), self.student_features(tiles), tiles).anomaly_map
        assert maps is not None  # predict gives them
        return maps


def coarse_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Compute height and width of the fused map from the image's."""
    height, width = image_size
    return (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE


def resized(distances: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Resize the distances of several layers, each of shape ``(B, H, W)``, to maps of shape ``(B, L, *size)``."""
    return torch.cat([bilinear_resize(maps.unsqueeze(1), size) for maps in distances], dim=1)


def _log(distances: torch.Tensor) -> torch.Tensor:
    return distances.clamp(min=_LEAST_DISTANCE).log()
