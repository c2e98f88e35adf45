"""Which transforms give an image the same result at each call."""

from typing import Any

from torchvision.transforms import v2

# Others may draw at random.
DETERMINISTIC = (
    *(v2.Compose, v2.Resize, v2.Normalize, v2.CenterCrop, v2.Pad, v2.Grayscale, v2.Identity),
    *(v2.ToDtype, v2.ToImage, v2.ToPureTensor, v2.RGB, v2.GaussianBlur),
)


def varying(transform: Any) -> list[str]:
    """Name the parts of a transform that are not known to be deterministic.

    Args:
        transform: A transform; ``None`` for nothing.
    """
    if transform is None:
        return []
    if type(transform) is v2.Compose:
        return [name for part in transform.transforms for name in varying(part)]
    # a Gaussian blur of several widths draws one
    fixed = not isinstance(transform, v2.GaussianBlur) or len(set(transform.sigma)) == 1
    return [] if type(transform) in DETERMINISTIC and fixed else [type(transform).__name__]
