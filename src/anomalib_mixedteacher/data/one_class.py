"""MNIST, Fashion-MNIST and CIFAR-10 as anomalib data sets: images of one class against the others."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
from anomalib import TaskType
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_mixedteacher.data._checks import CheckedItems, check_val_split
from anomalib_mixedteacher.data._one_class_files import CLASSES, extract_class, read_split, require_copy
from anomalib_mixedteacher.errors import ConfigurationError, DataError

DatasetName = Literal["MNIST", "FashionMNIST", "CIFAR10"]
Protocol = Literal["one_vs_rest", "rest_vs_one"]

DEFAULT_ROOT = "./datasets/OneClass"
GOOD = "good"


@dataclass(frozen=True)
class Selection:
    """Which images of which data set are normal.

    Attributes:
        dataset (str): ``MNIST``, ``FashionMNIST`` or ``CIFAR10``.
        category (str | int): A class, by its name or its index.
        protocol (str): ``one_vs_rest`` or ``rest_vs_one``.

    Raises:
        ConfigurationError: If the data set, the class or the protocol is unknown.
    """

    dataset: str
    category: str | int
    protocol: str

    def __post_init__(self) -> None:
        for what, value, known in (
            ("data set", self.dataset, tuple(CLASSES)),
            ("protocol", self.protocol, get_args(Protocol)),
        ):
            if value not in known:
                msg = f"Unknown {what} '{value}': choose one of {', '.join(known)}."
                raise ConfigurationError(msg)
        if not self._matches():
            names = ", ".join(CLASSES[self.dataset])
            msg = f"Unknown class '{self.category}' of {self.dataset}: choose one of {names}, or its index from 0 to 9."
            raise ConfigurationError(msg)

    @property
    def index(self) -> int:
        """Index of the class."""
        return self._matches()[0]

    @property
    def class_name(self) -> str:
        """Name of the class, as torchvision has it."""
        return CLASSES[self.dataset][self.index]

    @property
    def folder_name(self) -> str:
        """The class's name in small letters and digits: ``T-shirt/top`` would make two folders of results."""
        return _plain(self.class_name)

    def is_normal(self, index: int) -> bool:
        """Tell whether the images of a class are normal."""
        return (index == self.index) == (self.protocol == "one_vs_rest")

    def _matches(self) -> list[int]:
        wanted = str(self.category)
        names = enumerate(CLASSES[self.dataset])
        return [index for index, name in names if wanted == str(index) or _plain(wanted) == _plain(name)]


class OneClassDataset(CheckedItems):
    """Images of MNIST, Fashion-MNIST or CIFAR-10, some classes of them normal and the others anomalous.

    The images are read from local files in torchvision's layout and written once as PNG files, since anomalib's data
    sets, visualiser and checks read images by path: ``one_class/<data set>/<train or test>/<class index>/`` below
    ``root``, named by their places in the official split. MNIST's 28 x 28 pixels are enlarged to 32 x 32, bilinearly.

    No file of the data sets is trusted: CIFAR-10's pickled batches are read without running anything in them.

    The samples carry ``good`` or the anomalous class's name in the column ``label``. Training images of anomalous
    classes are left out.

    Args:
        root (Path | str): Folder that holds ``MNIST/raw``, ``FashionMNIST/raw`` or ``cifar-10-batches-py``.
            Defaults to ``"./datasets/OneClass"``.
        dataset (str): ``MNIST``, ``FashionMNIST`` or ``CIFAR10``. Defaults to ``"MNIST"``.
        category (str | int): The class; see :class:`OneClass`. Defaults to ``"0"``.
        protocol (str): ``one_vs_rest`` or ``rest_vs_one``; see :class:`OneClass`. Defaults to ``"one_vs_rest"``.
        download (bool): Let torchvision fetch the files if some are missing. Defaults to ``False``.
        augmentations (Transform | None): Augmentations of the images. Defaults to ``None``.
        split (str | Split | None): ``train``, ``test``, or None for both. Defaults to ``None``.

    Raises:
        ConfigurationError: If the data set, the class or the protocol is unknown.
        DataError: If files are missing or damaged, hold no image of a class that is needed, or cannot be written.
    """

    def __init__(
        self,
        root: Path | str = DEFAULT_ROOT,
        dataset: DatasetName = "MNIST",
        category: str | int = "0",
        protocol: Protocol = "one_vs_rest",
        download: bool = False,
        augmentations: Transform | None = None,
        split: str | Split | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        selection = Selection(dataset, category, protocol)
        self.category = selection.folder_name
        root = Path(root).expanduser()
        require_copy(root, dataset, download)
        splits = (Split.TRAIN, Split.TEST) if split is None else (Split(split),)
        samples = pd.concat([_samples(root, selection, part) for part in splits], ignore_index=True)
        samples.attrs["task"] = TaskType.CLASSIFICATION.value
        self.samples = samples


class OneClass(AnomalibDataModule):
    """Datamodule of the one-class protocols on MNIST, Fashion-MNIST and CIFAR-10.

    Training takes the normal images of the official training split, the test all images of the official test split.

    The published protocols know no validation set. Here a tenth of the *training* images validates: every test image
    is tested, as published, and thresholds come from good images that nothing was trained on. anomalib's usual
    ``from_test`` would test on half of the images; ``none`` trains on all.

    Args:
        root (Path | str): Folder in torchvision's layout: ``MNIST/raw/*-ubyte`` or ``*-ubyte.gz``,
            ``FashionMNIST/raw/...``, ``cifar-10-batches-py/...``. The PNG files go below it to ``one_class``.
            Defaults to ``"./datasets/OneClass"``.
        dataset (str): ``MNIST``, ``FashionMNIST`` or ``CIFAR10``. Defaults to ``"MNIST"``.
        category (str | int): The class, by torchvision's name (letter case and punctuation do not matter) or by its
            index: ``"8 - eight"``, ``"T-shirt/top"``, ``"airplane"``, ``"8"``. Defaults to ``"0"``.
        protocol (str): ``one_vs_rest``: this class is normal, all others are anomalous. ``rest_vs_one``: this class is
            anomalous, all others are normal. Defaults to ``"one_vs_rest"``.
        download (bool): Let torchvision fetch the files if some are missing. Nothing is fetched otherwise.
            Defaults to ``False``.
        train_batch_size (int): Training batch size. Defaults to ``64``.
        eval_batch_size (int): Validation and test batch size. Defaults to ``64``.
        num_workers (int): Worker processes per data loader. Defaults to ``0``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where no specific ones are given. Defaults to ``None``.
        test_split_mode (TestSplitMode | str): How the test set is made. Defaults to ``TestSplitMode.FROM_DIR``: the
            official test split.
        test_split_ratio (float): Share of training images tested if there are no good test images; never needed here.
            Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): How the validation set is made. Defaults to ``ValSplitMode.FROM_TRAIN``.
        val_split_ratio (float): Share of the training (or test) images that validate. Defaults to ``0.1``.
        seed (int): Seed of the validation split. Defaults to ``0``.

    Raises:
        ConfigurationError: If an argument is unknown or out of range.
        DataError: If the data are missing, damaged or cannot be written (raised when the data are prepared).

    Example:
        >>> from anomalib_mixedteacher.data.one_class import OneClass
        >>> datamodule = OneClass(dataset="CIFAR10", category="airplane")
        >>> datamodule.setup()  # doctest: +SKIP
        >>> next(iter(datamodule.train_dataloader())).image.shape  # doctest: +SKIP
        torch.Size([64, 3, 32, 32])
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
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TRAIN,
        val_split_ratio: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root = Path(root)
        self.selection = Selection(dataset, category, protocol)
        self.category = self.selection.folder_name
        self._arguments = (root, dataset, category, protocol, download)
        check_val_split(self)

    @property
    def name(self) -> str:  # type: ignore[override]  # a property in anomalib too
        """Data set and protocol, so that their results go to folders of their own."""
        return f"{self.selection.dataset}_{self.selection.protocol}"

    def prepare_data(self) -> None:
        """Write the images if they are not there; fetch the data set first, if it is missing and may be fetched.

        Raises:
            DataError: If files are missing or damaged, or cannot be fetched or written.
        """
        for split in (Split.TRAIN, Split.TEST):
            OneClassDataset(*self._arguments, split=split)

    def _setup(self, _stage: str | None = None) -> None:
        """Set up the training and the test images, prepared or not."""
        self.train_data = OneClassDataset(*self._arguments, split=Split.TRAIN)
        self.test_data = OneClassDataset(*self._arguments, split=Split.TEST)


def _plain(name: str) -> str:
    """Reduce a name to small letters and digits, with underscores between words."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _samples(root: Path, selection: Selection, split: Split) -> pd.DataFrame:
    """List the images of an official split, written as files."""
    images, labels = read_split(root, selection.dataset, split)
    present = set(labels.tolist())
    one, name = {selection.index}, selection.class_name
    rest = set(range(len(CLASSES[selection.dataset]))) - one
    for classes, what in ((one, name), (rest, f"a class other than {name}")):
        needed = split == Split.TEST or any(map(selection.is_normal, classes))
        if needed and not classes & present:
            msg = (
                f"The {split.value} files of {selection.dataset} below {root} hold no image of {what}: choose another "
                "category=, or put the published files there."
            )
            raise DataError(msg)
    rows = []
    for index in sorted(present):
        normal = selection.is_normal(index)
        if not normal and split == Split.TRAIN:
            continue
        places = (labels == index).nonzero()[0]
        folder = root / "one_class" / selection.dataset / split.value / str(index)
        label = GOOD if normal else CLASSES[selection.dataset][index]
        label_index = int(LabelName.NORMAL if normal else LabelName.ABNORMAL)
        rows += [(str(path), label, label_index) for path in extract_class(folder, images[places], places)]
    samples = pd.DataFrame(rows, columns=["image_path", "label", "label_index"])
    return samples.assign(split=split.value, mask_path="")
