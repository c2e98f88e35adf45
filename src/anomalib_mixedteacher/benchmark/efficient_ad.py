"""EfficientAd without its downloads: a random teacher, and generated textures in the place of ImageNette."""

from collections.abc import Iterator

import torch
from anomalib.models import EfficientAd

from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.scenes import Bank

SMALLEST_SIDE = 256
"""Side of the smallest image that the autoencoder takes, in pixels."""

_PENALTY_IMAGES = 64


class OfflineEfficientAd(EfficientAd):
    """EfficientAd whose teacher stays random and whose penalty images are generated.

    Everything else is anomalib's: the penalty keeps the student from following the teacher on images that are not the
    user's, and serves that end with any varied images.
    """

    def prepare_pretrained_model(self) -> None:
        """Leave the teacher as it was initialised."""

    def prepare_imagenette_data(self, image_size: tuple[int, int] | torch.Size) -> None:
        """Draw the penalty images."""
        images = Bank.draw(_PENALTY_IMAGES, max(image_size), Draw(0)).canvases
        endless = _endless(images[..., : image_size[0], : image_size[1]])
        self.imagenet_iterator = endless  # type: ignore[assignment]  # a data loader's, in anomalib


def _endless(images: torch.Tensor) -> Iterator[tuple[torch.Tensor]]:
    while True:
        for index in torch.randperm(len(images)).tolist():
            yield (images[index : index + 1],)
