"""Networks of MKD: the expert and its cloner, whose difference is differentiated with respect to the image."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast, get_args

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_mixedteacher.components.distillation_model import DistillationModel, Features
from anomalib_mixedteacher.components.feature_extractor import PooledBlocks
from anomalib_mixedteacher.components.smoothing import check_smoothing
from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.mkd import feed_forward, gradient
from anomalib_mixedteacher.models.mkd.anomaly_map import AnomalyMapGenerator
from anomalib_mixedteacher.models.mkd.loss import NAME, MkdLoss
from anomalib_mixedteacher.models.mkd.smooth_grad import SmoothGrad

Cloner = Literal["small", "equal"]
Localization = Literal["gradient", "smooth_grad", "guided_backprop"]

BACKBONE = "vgg16"
CRITICAL = (1, 2, 3, 4)  # pool2 to pool5
# Widths of the convolutions of each block. Where a block ends, the small cloner is as wide as the expert.
WIDTHS = {
    "small": ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512)),
    "equal": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


def build_cloner(size: Cloner) -> PooledBlocks:
    """Build an untrained cloner: VGG-like, without biases, with batch normalisation on all but each block's last layer.

    Args:
        size: ``"small"``, the paper's narrow cloner, or ``"equal"`` with the expert's widths.

    Returns:
        Network whose maps have the shapes of the expert's behind pool2 to pool5.

    Raises:
        ConfigurationError: If there is no such cloner.
    """
    if size not in WIDTHS:
        msg = f"Unknown cloner {size!r}; choose one of {', '.join(WIDTHS)}."
        raise ConfigurationError(msg)
    layers: list[nn.Module] = []
    channels = 3
    for block in WIDTHS[size]:
        for index, width in enumerate(block, start=1):
            convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            nn.init.xavier_uniform_(convolution.weight)
            layers.append(convolution)
            if index < len(block):
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(kernel_size=2))
    return PooledBlocks(nn.Sequential(*layers), CRITICAL)


class MkdModel(DistillationModel):
    """A frozen VGG-16, its cloner, and the gradient of their difference with respect to the image.

    Args:
        cloner: See :func:`build_cloner`.
        direction_weight: See :class:`MkdLoss`.
        direction_only: See :class:`MkdLoss`.
        localization: How the score is led back to the pixels: ``"gradient"``; ``"smooth_grad"``, the mean gradient of
            noisy copies; or ``"guided_backprop"``, where negative gradients stop at the cloner's ReLUs.
        sigma: See :class:`AnomalyMapGenerator`.
        opening: Side of the square that the map is opened with in pixels, odd; 0 for none.
        smooth_samples: Noisy copies of an image; see :class:`SmoothGrad`.
        smooth_noise: Standard deviation of their noise as a fraction of each image's range.

    Attributes:
        loss: The loss, which is the score too.

    Raises:
        ConfigurationError: If an argument is not one of its choices.
    """

    def __init__(
        self,
        cloner: Cloner = "small",
        direction_weight: float | Literal["auto"] = "auto",
        direction_only: bool = False,
        localization: Localization = "gradient",
        sigma: float = 4.0,
        opening: int = 0,
        smooth_samples: int = 50,
        smooth_noise: float = 0.1,
    ) -> None:
        if localization not in get_args(Localization):
            msg = f"Unknown localization {localization!r}; choose one of {', '.join(get_args(Localization))}."
            raise ConfigurationError(msg)
        super().__init__(teachers={NAME: Teacher(BACKBONE, CRITICAL)}, students={NAME: build_cloner(cloner)})
        self.localization = localization
        self.loss = MkdLoss(direction_weight, direction_only)
        self.smooth_grad = SmoothGrad(smooth_samples, smooth_noise)
        self.anomaly_map_generator = AnomalyMapGenerator(sigma, opening)

    def forward(
        self, images: torch.Tensor
    ) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[torch.Tensor]]] | InferenceBatch:
        """Compute features in training mode, predictions in evaluation mode.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``; see :meth:`features` and :meth:`predict`.

        Returns:
            See :meth:`features` and :meth:`predict`.
        """
        return self.features(images) if self.training else self.predict({}, {}, images)

    def predict(self, teacher: Features, student: Features, images: torch.Tensor) -> InferenceBatch:
        """Compute predictions; the model must be in evaluation mode.

        Under ``torch.autocast`` to bfloat16 the networks compute in it, under one to float16 in float32.

        Args:
            teacher: Unused: what is to be differentiated has to be computed anew.
            student: Unused.
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Anomaly map of shape ``(B, 1, H, W)`` and score of shape ``(B, 1)``, not normalised.

        Raises:
            ConfigurationError: If the images are too small, or the direction weight is not known yet.
            TeacherNotLoadedError: If the expert has no weights yet.
        """
        del teacher, student
        self.teachers[NAME].check_loaded()
        if torch.compiler.is_compiling():
            return self._predict(images)
        self.check_size(images)
        bfloat16 = _autocasts_to_bfloat16(images.device.type)
        with torch.autocast(images.device.type, enabled=False):  # the map's smoothing would be rounded
            return self._predict(images, bfloat16)

    def score_and_gradient(self, images: torch.Tensor, bfloat16: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute each image's score and the plain or guided gradient of it.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.
            bfloat16: Let the networks compute in bfloat16; score and gradient stay in the images' type.

        Returns:
            Scores of shape ``(B,)`` and gradients of shape ``(B, 3, H, W)``.
        """
        form = feed_forward if torch.compiler.is_compiling() else gradient
        expert = cast("PooledBlocks", self.teachers[NAME].extractor.net)
        cloner = cast("PooledBlocks", self.students[NAME])
        guided = self.localization == "guided_backprop"
        with _networks_in(images.device.type, bfloat16):
            return form.score_and_gradient(expert, cloner, self.loss, images, guided)

    def _predict(self, images: torch.Tensor, bfloat16: bool = False) -> InferenceBatch:
        if self.localization == "smooth_grad":
            with torch.no_grad():
                with _networks_in(images.device.type, bfloat16):
                    score = self.loss.score(*self.features(images))
                pixels = self.smooth_grad(lambda noisy: self.score_and_gradient(noisy, bfloat16)[1], images)
        else:
            score, pixels = self.score_and_gradient(images, bfloat16)
        return InferenceBatch(anomaly_map=self.anomaly_map_generator(pixels), pred_score=score[:, None])

    def check_map_size(self, height: int, width: int) -> None:
        """Check that the map's smoothing fits; see :meth:`DistillationModel.check_map_size`.

        Raises:
            ConfigurationError: If a side is too short.
        """
        generator = self.anomaly_map_generator
        check_smoothing(height, width, generator.reach + 1, generator.sigma)


def _networks_in(device: str, bfloat16: bool) -> AbstractContextManager[object]:
    """Let networks compute in bfloat16, or as they are, which leaves no trace in a graph that is being exported."""
    return torch.autocast(device, torch.bfloat16) if bfloat16 else nullcontext()


def _autocasts_to_bfloat16(device: str) -> bool:
    """Tell whether networks are to compute in bfloat16; in float16 gradients would vanish, so that they do not."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
