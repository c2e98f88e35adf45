"""Images that are decoded and resized once, and stay in memory while a model is trained."""

import copy
import logging
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, DatasetItem
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch.utils.data import Dataset

from anomalib_mixedteacher.components.deterministic import varying
from anomalib_mixedteacher.components.feature_file import megabytes

logger = logging.getLogger(__name__)

SUBSETS = ("train_data", "val_data")
_READERS = min(4, os.cpu_count() or 1)
# Of these packages it is known that an item is made of files and augmentations alone.
KNOWN_PACKAGES = ("anomalib", __name__.partition(".")[0])


class KeptImages(Dataset):
    """A data set whose items are in memory; everything else about it is the data set's own.

    Args:
        dataset: The data set.
        items: Its items.
    """

    def __init__(self, dataset: Dataset, items: list[DatasetItem]) -> None:
        self._dataset = dataset
        self._items = items

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> DatasetItem:
        """Copy an item, as whoever gets it may change it; after :meth:`release` it is made anew."""
        return copy.deepcopy(self._items[index]) if self._items else self._dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying asks for special methods before there is a data set
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def release(self) -> None:
        """Forget the items."""
        self._items = []


class KeptData:
    """A datamodule whose training and validation images are in memory, until :meth:`release`.

    They are read in the main process: workers are made for each epoch, and take longer for that than for such images.

    Args:
        datamodule: A datamodule that was set up.
        items: Items of some of its subsets, by the subset's name.
    """

    def __init__(self, datamodule: AnomalibDataModule, items: Mapping[str, list[DatasetItem]]) -> None:
        self.size = sum(_size(item) for subset in items.values() for item in subset)
        self._datamodule = datamodule
        self._before = {name: getattr(datamodule, name) for name in (*items, "num_workers")}
        self._subsets = {name: KeptImages(self._before[name], subset) for name, subset in items.items()}
        for name, subset in self._subsets.items():
            setattr(datamodule, name, subset)
        datamodule.num_workers = 0
        warnings.filterwarnings("ignore", ".*does not have many workers", PossibleUserWarning)

    def release(self) -> None:
        """Make the datamodule what it was."""
        for name, value in self._before.items():
            setattr(self._datamodule, name, value)
        for subset in self._subsets.values():
            subset.release()


def keep_images(datamodule: AnomalibDataModule, budget: int) -> KeptData | None:
    """Read a datamodule's training and validation images into memory.

    Args:
        datamodule: A datamodule that was set up.
        budget: Bytes that the images, as they are after the data sets' augmentations, may take.

    Returns:
        What holds them; ``None``, and the datamodule as it was, if they need more, or if an item may differ from one
        time to the next.

    Raises:
        DataError: If an image cannot be read.
    """
    there = [name for name in SUBSETS if len(getattr(datamodule, name, ()))]
    subsets: dict[str, AnomalibDataset] = {name: getattr(datamodule, name) for name in there}
    reasons = [reason for dataset in subsets.values() for reason in _reasons(dataset)]
    if reasons:
        logger.info("Images are read in every epoch: %s may change them at random.", ", ".join(dict.fromkeys(reasons)))
        return None
    # of one image each, before all are read; where images differ in size, this is an estimate
    size = sum(len(dataset) * _size(dataset[0]) for dataset in subsets.values())
    if size > budget:
        logger.info("Images are read in every epoch: they take %s, of %s.", megabytes(size), megabytes(budget))
        return None
    # a camera's image takes hundreds of megabytes while it is resized, so not one for each core of a large machine
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        items = {name: list(pool.map(dataset.__getitem__, range(len(dataset)))) for name, dataset in subsets.items()}
    return KeptData(datamodule, items)


def _reasons(dataset: AnomalibDataset) -> list[str]:
    """Name what may make an item differ from one time to the next."""
    name = type(dataset).__name__
    known = type(dataset).__getitem__.__module__.partition(".")[0] in KNOWN_PACKAGES
    return [*([] if known else [name]), *varying(dataset.augmentations)]


def _size(item: DatasetItem) -> int:
    return sum(value.nbytes for value in vars(item).values() if isinstance(value, torch.Tensor))
