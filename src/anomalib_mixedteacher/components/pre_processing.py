"""Pre-processing that is the same in training, in prediction and in the exported graph."""

import logging
from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform

from anomalib_mixedteacher.components.maps import bilinear_resize
from anomalib_mixedteacher.errors import ConfigurationError

logger = logging.getLogger(__name__)

IMAGE_SIZE = (256, 256)
# All forms that torchvision takes; the numbers are Pillow's.
BILINEAR = ("bilinear", InterpolationMode.BILINEAR, 2)
_NEVER_ANTIALIASED = ("nearest", "nearest-exact", InterpolationMode.NEAREST, InterpolationMode.NEAREST_EXACT, 0)


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor, whose exported graph keeps the antialiasing of its resize.

    anomalib switches antialiasing off in the graph, since OpenVINO's resize ignores it; an image larger than the
    model's input then gets another score from the exported model than from the trained one. Here the graph resizes by
    two matrix products, which are exact. That is for bilinear resizes to a fixed height and width; of another one with
    antialiasing a warning says that the graph's has none.

    Args:
        transform: Transform for training and prediction.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self.export_transform = _exportable(self.transform, self.export_transform)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform from a checkpoint."""
        super().load_checkpoint_config(config)
        self.export_transform = _exportable(self.transform, self.export_transform)


def check_uncropped(transform: Any) -> None:
    """Refuse a transform that cuts images: heat maps and contours would lie beside the defects.

    Args:
        transform: The transform of a pre-processor, or ``None``.

    Raises:
        ConfigurationError: If it crops or pads.
    """
    for step in getattr(transform, "transforms", ()):
        check_uncropped(step)
    if any(word in type(transform).__name__ for word in ("Crop", "Pad")):
        msg = f"{transform} would lay heat maps beside the defects: cut the image files instead, and leave it out."
        raise ConfigurationError(msg)


class AntialiasedResize(nn.Module):
    """Bilinear resize with antialiasing as ``Resize(size, antialias=True)`` does it, for exported graphs.

    Args:
        size: Height and width to resize to.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Resize images.

        Args:
            images: Floating-point images of shape ``(B, C, H, W)``.

        Returns:
            Images of shape ``(B, C, *size)``.
        """
        return bilinear_resize(images, self.size)


def _exportable(transform: Transform | None, export_transform: Any) -> Any:
    """Put a transform's antialiased resizes into its export transform."""
    if isinstance(transform, Compose):
        steps = zip(transform.transforms, export_transform.transforms, strict=True)
        return Compose([_exportable(step, exported) for step, exported in steps])
    if not isinstance(transform, Resize) or not transform.antialias or transform.interpolation in _NEVER_ANTIALIASED:
        return export_transform
    bilinear = transform.interpolation in BILINEAR
    if bilinear and transform.size is not None and len(transform.size) == 2:
        return AntialiasedResize((transform.size[0], transform.size[1]))
    logger.warning(
        "From %s exported models resize without antialiasing, and score larger images otherwise than in training: "
        "resize bilinearly to a fixed height and width, or with antialias=False.",
        transform,
    )
    return export_transform
