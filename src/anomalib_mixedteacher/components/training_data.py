"""Checks at the start of training, and samples of the training images."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from anomalib_mixedteacher.components.images import check_image
from anomalib_mixedteacher.errors import DataError

MIN_IMAGES = 2


def check_training_data(dataset: Dataset) -> dict[str, Any]:
    """Read every training image once, so that a bad one is named before the first epoch and not within it.

    Args:
        dataset: An anomalib data set; one without a ``samples`` table is only counted.

    Returns:
        A fingerprint: the number of ``images`` and the ``sha256`` of their contents, whatever their names and order.

    Raises:
        DataError: If there are fewer than two images, or one cannot be decoded, has a side below 32 pixels, or has one
            value in all its pixels.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count < MIN_IMAGES:
        msg = (
            f"{count} training image is too few to learn what varies between good images: give at least {MIN_IMAGES}, "
            "better 50, or hold fewer back for validation."
        )
        raise DataError(msg)
    samples = getattr(dataset, "samples", None)
    if samples is None:
        return {"images": count, "sha256": None}
    with ThreadPoolExecutor() as pool:
        digests = sorted(pool.map(_checked, samples.image_path))
    return {"images": count, "sha256": hashlib.sha256("".join(digests).encode()).hexdigest()}


def _checked(path: str) -> str:
    check_image(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def sample_images(loader: DataLoader, count: int) -> Iterator[torch.Tensor]:
    """Read images spread evenly over a loader's data set, the same on every process.

    Args:
        loader: Loader over an anomalib data set.
        count: How many images at most.

    Yields:
        Batches of images of shape ``(B, 3, H, W)``.
    """
    dataset = loader.dataset
    length = len(dataset)  # type: ignore[arg-type]
    indices = torch.linspace(0, length - 1, min(count, length)).round().int().tolist()
    for batch in DataLoader(Subset(dataset, indices), batch_size=loader.batch_size, collate_fn=loader.collate_fn):
        yield batch.image
