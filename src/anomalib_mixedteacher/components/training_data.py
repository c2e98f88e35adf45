"""Checks at the start of training, and samples of the training images."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from anomalib_mixedteacher.decoding import check_image
from anomalib_mixedteacher.errors import DataError

MIN_IMAGES = 2


def check_training_data(dataset: Dataset) -> dict[str, str]:
    """Read every training image once, so that a bad one is named before the first epoch and not within it.

    Args:
        dataset: An anomalib data set; one without a ``samples`` table is only counted.

    Returns:
        SHA-256 of each image file's content, by path; empty for a data set without a ``samples`` table.

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
        return {}
    with ThreadPoolExecutor() as pool:
        return dict(zip(samples.image_path, pool.map(_checked, samples.image_path), strict=True))


def training_fingerprint(dataset: Dataset, digests: Mapping[str, str]) -> dict[str, Any]:
    """Identify training images whatever their names and order.

    Args:
        dataset: The data set.
        digests: What :func:`check_training_data` returned.

    Returns:
        The number of ``images``, and the ``sha256`` of their contents; ``None`` if there are no files.
    """
    together = hashlib.sha256("".join(sorted(digests.values())).encode()).hexdigest()
    return {"images": len(dataset), "sha256": together if digests else None}  # type: ignore[arg-type]


def _checked(path: str) -> str:
    check_image(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def sample_batches(loader: DataLoader, count: int) -> Iterator[Any]:
    """Read images spread evenly over a loader's data set, the same on every process.

    Args:
        loader: Loader over an anomalib data set.
        count: How many images at most.

    Yields:
        anomalib's batches, with images of shape ``(B, 3, H, W)``.
    """
    dataset = loader.dataset
    length = len(dataset)  # type: ignore[arg-type]
    indices = torch.linspace(0, length - 1, min(count, length)).round().int().tolist()
    # of a loader with a batch sampler of the user's, which need not have a size, the loader's own is None
    size = None if loader.batch_sampler is None else getattr(loader.batch_sampler, "batch_size", count)
    yield from DataLoader(Subset(dataset, indices), batch_size=size, collate_fn=loader.collate_fn)
