"""MNIST, Fashion-MNIST and CIFAR-10 as anomalib data sets: images of one class against the others."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anomalib.data.utils import Split, ValSplitMode
from PIL import Image
from torchvision import datasets

from anomalib_mixedteacher.data.base import GOOD, CheckedDataModule, check_choice, folder_in_progress
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from mixedteacher_edge.decoding import MIN_SIDE

DatasetName = Literal["MNIST", "FashionMNIST", "CIFAR10"]
Protocol = Literal["one_vs_rest", "rest_vs_one"]

DEFAULT_ROOT = "./datasets/OneClass"
CLASSES: dict[str, Sequence[str]] = {
    "MNIST": datasets.MNIST.classes,
    "FashionMNIST": datasets.FashionMNIST.classes,
    # torchvision reads these from a file of the data set
    "CIFAR10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
"""torchvision's names of the classes, by data set."""


class OneClass(CheckedDataModule):
    """Datamodule of the one-class protocols on MNIST, Fashion-MNIST and CIFAR-10.

    Training takes the normal images of the official training split, the test all images of the official test split.
    The published protocols know no validation set. Here a tenth of the *training* images validates: every test image
    is tested, as published, and thresholds come from good images that nothing was trained on. ``none`` trains on all.

    torchvision reads the data. The classes needed are written once as PNG files to ``one_class`` below ``root``, since
    anomalib reads images by path; 28 x 28 pixels are enlarged to 32 x 32, bilinearly, as MKD's authors do.

    Args:
        root (Path | str): Folder in torchvision's layout: ``MNIST/raw``, ``FashionMNIST/raw``,
            ``cifar-10-batches-py``. Defaults to ``"./datasets/OneClass"``.
        dataset (str): ``MNIST``, ``FashionMNIST`` or ``CIFAR10``. Defaults to ``"MNIST"``.
        category (str | int): The class, by torchvision's name (letter case and punctuation do not matter) or by its
            index: ``"8 - eight"``, ``"T-shirt/top"``, ``"airplane"``, ``"8"``. Defaults to ``"0"``.
        protocol (str): ``one_vs_rest``: this class is normal, all others are anomalous. ``rest_vs_one``: this class is
            anomalous, all others are normal. Defaults to ``"one_vs_rest"``.
        download (bool): Let torchvision fetch the files if some are missing. Defaults to ``False``.
        train_batch_size (int): Training batch size. Defaults to ``64``.
        eval_batch_size (int): Validation and test batch size. Defaults to ``64``.
        val_split_mode (ValSplitMode | str): How the validation set is made. Defaults to ``ValSplitMode.FROM_TRAIN``.
        val_split_ratio (float): Share of the training (or test) images that validate. Defaults to ``0.1``.
        **kwargs: See :class:`~anomalib_mixedteacher.data.base.CheckedDataModule`.

    Raises:
        ConfigurationError: If an argument is unknown or out of range.
        DataError: If the data are missing, damaged or cannot be written (raised when the data are prepared).
    """

    def __init__(
        self,
        root: Path | str = DEFAULT_ROOT,
        dataset: DatasetName = "MNIST",
        category: str | int = "0",
        protocol: Protocol = "one_vs_rest",
        download: bool = False,
        train_batch_size: int = 64,
        eval_batch_size: int = 64,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TRAIN,
        val_split_ratio: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            **kwargs,
        )
        check_choice("dataset", dataset, CLASSES)
        check_choice("protocol", protocol, get_args(Protocol))
        names = CLASSES[dataset]
        wanted = str(category)
        matches = [i for i, name in enumerate(names) if wanted == str(i) or _plain(wanted) == _plain(name)]
        if not matches:
            msg = f"category is '{category}': choose one of {', '.join(names)}, or its index from 0 to 9."
            raise ConfigurationError(msg)
        self.root, self.dataset, self.protocol, self.download = Path(root).expanduser(), dataset, protocol, download
        self.class_index = matches[0]
        # names folders of results, in which "T-shirt/top" would make two
        self.category = _plain(names[self.class_index])

    @property
    def name(self) -> str:  # type: ignore[override]  # a property in anomalib too
        """Data set and protocol, so that their results go to folders of their own."""
        return f"{self.dataset}_{self.protocol}"

    def make_samples(self) -> pd.DataFrame:
        """Write the images of the classes that are needed unless they are there, and list them."""
        rows = []
        for split in (Split.TRAIN, Split.TEST):
            folder = self.root / "one_class" / self.dataset / split.value
            normal = [(index == self.class_index) == (self.protocol == "one_vs_rest") for index in range(10)]
            needed = [index for index in range(10) if normal[index] or split == Split.TEST]
            self._extract(split, [folder / str(index) for index in needed if not (folder / str(index)).is_dir()])
            for index in needed:
                label = GOOD if normal[index] else CLASSES[self.dataset][index]
                paths = (folder / str(index)).glob("*.png")
                rows += [(str(path), label, "", split.value) for path in paths]
        return pd.DataFrame(rows, columns=["image_path", "label", "mask_path", "split"])

    def _extract(self, split: Split, folders: Sequence[Path]) -> None:
        """Write classes, each to a folder named by its index, its images named by their places in the split."""
        if not folders:
            return
        try:
            source = getattr(datasets, self.dataset)(str(self.root), split == Split.TRAIN, download=self.download)
        except Exception as error:  # of the network, of the disk, or of a damaged file
            reason = " ".join(str(error).split())
            msg = (
                f"Cannot read {self.dataset} below {self.root} ({reason}): put its files there as torchvision does, "
                "give another root=, or set download=True to fetch them."
            )
            raise DataError(msg) from error
        labels = np.asarray(source.targets)
        for folder in folders:
            with folder_in_progress(folder) as work:
                for place in np.flatnonzero(labels == int(folder.name)):
                    image, _ = source[int(place)]
                    if min(image.size) < MIN_SIDE:
                        image = image.resize((MIN_SIDE, MIN_SIDE), Image.Resampling.BILINEAR)
                    image.save(work / f"{place:05d}.png")


def _plain(name: str) -> str:
    """Reduce a name to small letters and digits, with underscores between words."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
