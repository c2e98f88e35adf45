"""Frozen teachers."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor
from anomalib_mixedteacher.components.weights import IMAGENET_TAGS, load_weights
from anomalib_mixedteacher.errors import TeacherNotLoadedError


class Teacher(FeatureExtractor):
    """A frozen backbone whose weights are loaded on an explicit call, or with a checkpoint; never on construction.

    Until then its parameters are NaN, so that it can neither be used nor saved as if it were a loaded one.

    All teachers take the same images, normalised by ImageNet's mean and deviation. A backbone that was trained with
    another normalisation, as EfficientNet-Lite0 with ``(x - 0.5) / 0.5``, applies the difference itself.

    Args:
        backbone: timm architecture name.
        layers: See :class:`FeatureExtractor`.
        pool: Average-pool each map over 2 x 2 positions, which doubles its stride.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, backbone: str, layers: Sequence[str], pool: bool = False) -> None:
        super().__init__(backbone, layers)
        self.pool = pool
        if pool:
            self.strides = [2 * stride for stride in self.strides]
        config = timm.get_pretrained_cfg(IMAGENET_TAGS.get(backbone, backbone))
        values = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, config.mean, config.std) if config else ()
        mean, std, own_mean, own_std = torch.tensor(values or ((0.0,) * 3, (1.0,) * 3) * 2)[..., None, None]
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)
        self.same_normalization = bool((self.scale == 1).all() and (self.shift == 0).all())
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.fill_(torch.nan)
        self.loaded = False
        self.register_load_state_dict_post_hook(_note_loaded)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a teacher's batch normalisation never learns."""
        del mode
        return super().train(False)

    def load(self, source: str) -> None:
        """Load weights.

        Args:
            source: See :func:`~anomalib_mixedteacher.components.weights.load_weights`.

        Raises:
            WeightsError: If they cannot be found, read or matched to the backbone.
        """
        self.load_state_dict(load_weights(self, source))

    def check_loaded(self) -> None:
        """Check that the teacher can be used.

        Raises:
            TeacherNotLoadedError: If no weights were loaded yet.
        """
        if not self.loaded:
            msg = (
                f"The {self.backbone} teacher has no weights yet: train the model first, or give a trained checkpoint "
                "(--ckpt_path on the command line, load_from_checkpoint in Python)."
            )
            raise TeacherNotLoadedError(msg)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute teacher features.

        Args:
            images: Images of shape ``(B, 3, H, W)``, normalised by ImageNet's mean and deviation.

        Returns:
            One map per layer, shallow to deep; pooled maps have half the size, rounded up.

        Raises:
            TeacherNotLoadedError: If no weights were loaded yet.
        """
        self.check_loaded()
        maps = super().forward(images if self.same_normalization else images * self.scale + self.shift)
        # ceil_mode rounds sides up as strided convolutions do, so that maps meet the student's at any size
        return [F.avg_pool2d(map_, kernel_size=2, ceil_mode=True) for map_ in maps] if self.pool else maps


@torch.no_grad()
def set_normalization_statistics(net: nn.Module, images: torch.Tensor) -> None:
    """Set a frozen network's running statistics from images: with random weights the signal would fade with depth.

    Args:
        net: Network in evaluation mode.
        images: Normalised images of shape ``(B, 3, H, W)``.
    """
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: after one pass, the statistics of that pass
        norm.training = True
    net(images)
    net.eval()


def _note_loaded(module: nn.Module, incompatible_keys: Any) -> None:
    del incompatible_keys
    module.loaded = not any(parameter.isnan().any() for parameter in module.parameters())  # type: ignore[assignment]
