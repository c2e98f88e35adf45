"""The training images: checked before the first epoch, identified, sampled, and what teachers give of them kept."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from anomalib_mixedteacher.decoding import check_image, check_mask, image_size
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from mixedteacher_edge.decoding import BITS, setting

# Others may draw at random: what they give has to be seen by the teachers each time.
_DETERMINISTIC = (v2.Compose, v2.Resize, v2.Normalize, v2.CenterCrop, v2.Pad, v2.Grayscale, v2.ToDtype, v2.ToImage)
_LARGEST = torch.finfo(torch.float16).max


def check_training_images(dataset: Dataset) -> dict[str, Any]:
    """Read every training image once, so that a bad one is named before the first epoch and not within it.

    Returns:
        The number of ``images``, and the ``sha256`` of their contents, whatever their names and order; ``None`` for a
        data set that does not name files; and the ``bits`` of those with more than 8.

    Raises:
        DataError: If there are fewer than two images, or one cannot be used.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count < 2:
        msg = (
            f"{count} training image is too few to learn what varies between good images: give at least 2, better 50, "
            "or hold fewer back for validation."
        )
        raise DataError(msg)
    samples = getattr(dataset, "samples", None)
    if samples is None:
        return {"images": count, "sha256": None, "bits": setting(BITS)}
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_checked_digest, samples.image_path))
    sha256 = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return {"images": count, "sha256": sha256, "bits": setting(BITS)}


def _checked_digest(path: str) -> str:
    check_image(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_masks(dataset: Any) -> None:
    """Check that each mask of a data set, if there is one, has the shape of its image; a DataError names another."""
    samples = getattr(dataset, "samples", None)
    if samples is not None and "mask_path" in samples:
        for image, mask in zip(samples.image_path, samples.mask_path, strict=True):
            if isinstance(mask, str) and mask:
                check_mask(image, mask)


def check_equal_sizes(dataset: Any, option: str) -> None:
    """Check that images that come in batches have one size: anomalib would stretch them to that of the largest.

    A ConfigurationError names the option of the batch size.
    """
    samples = getattr(dataset, "samples", None)
    sizes = set() if samples is None else {image_size(path) for path in samples.image_path}
    if len(sizes) > 1:
        msg = f"Images of {len(sizes)} sizes would be stretched to one in a batch: set {option}=1 (--data.{option} 1)."
        raise ConfigurationError(msg)


def is_deterministic(transform: Any) -> bool:
    """Tell whether a transform is known to give an image the same result at each call; ``None`` is."""
    if isinstance(transform, v2.Compose):
        return all(map(is_deterministic, transform.transforms))
    return transform is None or type(transform) in _DETERMINISTIC


def sample_batches(loader: DataLoader, count: int, at_once: int = 16) -> Iterator[Any]:
    """Read ``count`` images spread evenly over a data set, the same on every process, in anomalib's batches."""
    indices = spread_evenly(len(loader.dataset), count)  # type: ignore[arg-type]
    yield from DataLoader(Subset(loader.dataset, indices), batch_size=at_once, collate_fn=loader.collate_fn)


def spread_evenly(length: int, count: int) -> list[int]:
    """Choose at most ``count`` of as many items as ``length`` says, the first and the last among them."""
    return [round(place.item()) for place in torch.linspace(0, length - 1, min(count, length))]


class FeatureCache:
    """Keeps feature maps by image, rounded to float16, up to a budget; what does not fit is computed each time.

    Args:
        budget: Memory in MiB.
    """

    def __init__(self, budget: int) -> None:
        self._free = budget * 2**20
        self._kept: dict[str, list[torch.Tensor]] = {}

    def features(
        self, images: torch.Tensor, paths: Sequence[str], compute: Callable[[torch.Tensor], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Give the features of a batch; only those of images that are not kept are computed.

        Args:
            images: Images of shape ``(B, 3, H, W)``.
            paths: Path of each image, by which it is known again.
            compute: The teachers.

        Returns:
            float32 maps of shape ``(B, C_i, H_i, W_i)``. Each value is rounded to float16 from the first time on.
        """
        rows = [self._kept.get(path) for path in paths]
        new = [position for position, row in enumerate(rows) if row is None]
        if new:
            maps = [map_.clamp(-_LARGEST, _LARGEST).half().cpu() for map_ in compute(images[new])]
            for position, *row in zip(new, *maps, strict=True):
                rows[position] = row
                self._keep(paths[position], row)
        columns = zip(*rows, strict=True)
        # float32 first: autocast on a CPU knows no float16
        return [torch.stack([map_.float() for map_ in maps]).to(images.device) for maps in columns]

    def _keep(self, path: str, row: list[torch.Tensor]) -> None:
        size = sum(map_.nbytes for map_ in row)
        if size <= self._free:
            self._free -= size
            self._kept[path] = [map_.clone() for map_ in row]
