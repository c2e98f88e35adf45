"""Frozen teachers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor
from anomalib_mixedteacher.components.weights import load_teacher_weights
from anomalib_mixedteacher.errors import TeacherNotLoadedError


class Teacher(nn.Module):
    """A frozen backbone whose weights are loaded on an explicit call, or with a checkpoint; never on construction.

    Until then its parameters are NaN, so an unloaded teacher can neither be used by mistake nor be saved as if it
    were a loaded one.

    Args:
        backbone: timm architecture name.
        out_indices: Stages to return, see :class:`FeatureExtractor`.
        pool: Average-pool each map over 2 x 2 positions.
    """

    def __init__(self, backbone: str, out_indices: Sequence[int], pool: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.extractor = FeatureExtractor(backbone, out_indices)
        self.requires_grad_(False)
        self.loaded = False
        for parameter in self.extractor.parameters():
            parameter.fill_(torch.nan)
        self.register_load_state_dict_post_hook(_note_loaded)
        self.eval()

    @property
    def backbone(self) -> str:
        """The timm architecture name."""
        return self.extractor.backbone

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a teacher's batch normalisation never learns."""
        del mode
        return super().train(False)

    def load(self, source: str) -> None:
        """Load weights.

        Args:
            source: A name in :data:`~anomalib_mixedteacher.components.weights.SOURCES` or a path.

        Raises:
            WeightsError: If they cannot be found, read or matched to the backbone.
        """
        self.extractor.net.load_state_dict(load_teacher_weights(self.backbone, source, self.extractor.net))
        self.loaded = True

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

    def set_normalization_statistics(self, images: torch.Tensor) -> None:
        """Set the running statistics from images; see :func:`set_normalization_statistics`."""
        set_normalization_statistics(self.extractor, images)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute teacher features.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            One map per stage, shallow to deep; see :class:`FeatureExtractor`. Pooled maps have half the size,
            rounded up.

        Raises:
            TeacherNotLoadedError: If no weights were loaded yet.
        """
        self.check_loaded()
        features = self.extractor(images)
        if self.pool:
            # ceil_mode rounds sides up as strided convolutions do, so that maps meet the student's at any size
            features = [F.avg_pool2d(feature, kernel_size=2, ceil_mode=True) for feature in features]
        return features


@torch.no_grad()
def set_normalization_statistics(net: nn.Module, images: torch.Tensor) -> None:
    """Set the running statistics of every batch normalisation of a network from images.

    With random weights the signal otherwise grows or fades from layer to layer.

    Args:
        net: Network in evaluation mode.
        images: Normalised images of shape ``(B, 3, H, W)``.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a cumulative average: after one pass, the statistics of that pass
        norm.reset_running_stats()
        norm.training = True
    net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.training = False


def freeze_normalization_statistics(net: nn.Module) -> None:
    """Keep the running statistics of every batch normalisation of a network in training, and judge with them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _note_loaded(module: nn.Module, incompatible_keys: Any) -> None:
    del incompatible_keys
    if isinstance(module, Teacher):
        module.loaded = not any(parameter.isnan().any() for parameter in module.extractor.parameters())
