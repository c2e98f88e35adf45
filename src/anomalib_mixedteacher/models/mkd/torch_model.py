"""Networks of MKD: the expert and its cloner, whose difference is differentiated with respect to the image."""

from typing import Literal, cast

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_mixedteacher.components.distillation_model import MIN_SIDE, DistillationModel, Features
from anomalib_mixedteacher.components.maps import full_precision
from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.models.mkd.anomaly_map import AnomalyMapGenerator, activations, image_gradient
from anomalib_mixedteacher.models.mkd.loss import MkdLoss

NAME = "vgg"
CRITICAL = ("features.9", "features.16", "features.23", "features.30")  # the expert's pool2 to pool5
WIDTHS = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))  # of the cloner, block by block


class Cloner(nn.Module):
    """The paper's small cloner: VGG-16's layers, narrow but where a block ends, there as wide as the expert.

    It has no biases, and batch normalisation behind every convolution but the last of each block.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in WIDTHS:
            for index, width in enumerate(block, start=1):
                convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
                nn.init.xavier_uniform_(convolution.weight)
                norm = [nn.BatchNorm2d(width)] if index < len(block) else []
                layers += [convolution, *norm, nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(kernel_size=2))
        self.features = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> Features:
        """Compute the maps behind pool2 to pool5.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Maps of shape ``(B, C, H / stride, W / stride)`` with 128, 256, 512, 512 channels at strides 4, 8, 16, 32.
        """
        return critical_maps(self.features, activations(self.features, images))


def critical_maps(layers: nn.Sequential, steps: Features) -> Features:
    """Choose the outputs of all max-poolings but the first from what :func:`~.anomaly_map.activations` gives."""
    return [y for layer, y in zip(layers, steps[1:], strict=True) if isinstance(layer, nn.MaxPool2d)][1:]


class MkdModel(DistillationModel):
    """A frozen VGG-16, its cloner, and the gradient of their difference with respect to the image.

    Arguments are those of :class:`~anomalib_mixedteacher.Mkd`.

    Attributes:
        loss: The loss, which is the score too.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    def __init__(self, direction_weight: float | Literal["auto"] = "auto", sigma: float = 4.0) -> None:
        super().__init__({NAME: Teacher("vgg16", CRITICAL)}, {NAME: Cloner()})
        self.loss = MkdLoss(direction_weight)
        self.anomaly_map_generator = AnomalyMapGenerator(sigma)
        self.min_side = max(MIN_SIDE, self.anomaly_map_generator.min_side)

    def forward(self, images: torch.Tensor) -> tuple[Features, Features] | InferenceBatch:
        """Compute features in training mode, predictions in evaluation mode; see :class:`DistillationModel`."""
        return super().forward(images) if self.training else self.predict([], [], images)

    def predict(self, teacher: Features, student: Features, images: torch.Tensor) -> InferenceBatch:
        """Compute predictions in float32, whatever the precision of training: the gradient would be rounded.

        The features are not used: what is to be differentiated has to be computed with all that lies between.

        Raises:
            ConfigurationError: If the images are too small, or the direction weight is not known yet.
            TeacherNotLoadedError: If the expert has no weights yet.
        """
        del teacher, student
        self.check_size(images)
        if not torch.compiler.is_compiling():
            images = images.contiguous(memory_format=torch.channels_last)
        with full_precision(images.device):
            score, gradient = self.score_and_gradient(images)
            return InferenceBatch(anomaly_map=self.anomaly_map_generator(gradient), pred_score=score[:, None])

    @torch.no_grad()
    def score_and_gradient(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute each image's score and its gradient with respect to the image.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Scores of shape ``(B,)`` and gradients of shape ``(B, 3, H, W)``.

        Raises:
            TeacherNotLoadedError: If the expert has no weights yet.
        """
        expert = self.teachers[NAME]
        expert.check_loaded()
        chains = [cast("nn.Sequential", net.features) for net in (expert, self.students[NAME])]
        steps = [activations(chain, images) for chain in chains]
        maps = [critical_maps(*pair) for pair in zip(chains, steps, strict=True)]
        towards = self.loss.score_gradients(*maps)
        gradients = [image_gradient(*three) for three in zip(chains, steps, towards, strict=True)]
        return self.loss.score(*maps), gradients[0] + gradients[1]
