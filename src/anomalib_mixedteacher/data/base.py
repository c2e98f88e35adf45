"""What this package's data sets share: images and masks checked when they are read, and arguments of the split."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageItem
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.decoding import read_image, read_mask
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from mixedteacher_edge.decoding import check_size

GOOD = "good"
"""Label of the images without a defect."""


class CheckedDataset(AnomalibDataset):
    """Images and masks of which an unusable one is reported by name.

    Args:
        samples (pd.DataFrame): One row per image: ``image_path``, ``label`` (``good`` or the kind of defect),
            ``label_index`` (0 or 1), ``mask_path`` (empty where there is none) and ``split``; the task in ``attrs``.
    """

    def __init__(self, samples: pd.DataFrame) -> None:
        super().__init__()
        self.samples = samples

    def __getitem__(self, index: int) -> ImageItem:
        """Read an image ``(3, H, W)`` in ``[0, 1]``, its mask ``(H, W)`` of 0 and 1, and its label, 0 (good) or 1.

        Raises:
            DataError: If the image or the mask cannot be read, their sizes differ, or the image is smaller than 32
                pixels on a side.
        """
        row = self.samples.iloc[index]
        image = read_image(row.image_path, as_tensor=True)
        height, width = image.shape[-2:]
        check_size(row.image_path, height, width)
        defective = int(row.label_index) == LabelName.ABNORMAL
        mask = None
        if self.task == TaskType.SEGMENTATION:
            empty = Mask(torch.zeros(height, width, dtype=torch.uint8))
            mask = load_mask(row.mask_path, (height, width)) if defective else empty
        if self.augmentations and mask is None:
            image = self.augmentations(image)
        elif self.augmentations:
            image, mask = self.augmentations(image, mask)
        return ImageItem(
            image=image,
            gt_mask=mask,
            gt_label=torch.tensor(int(row.label_index)),
            image_path=row.image_path,
            mask_path=row.mask_path or None,
        )


def load_mask(path: str | Path, size: tuple[int, int]) -> Mask:
    """Read a mask ``(H, W)``, uint8 of 0 and 1; a pixel belongs to the defect from half of full scale (128 of 255) on.

    anomalib's ``read_mask`` counts every value above 0, which widens a mask whose edges were smoothed: by half on the
    cracks of the magnetic tiles.

    Raises:
        DataError: If the file cannot be decoded or differs from ``size``, the image's height and width.
    """
    mask = torch.from_numpy(read_mask(path) >= 128)
    if tuple(mask.shape) != size:
        msg = (
            f"The mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels but its image is {size[1]} x {size[0]}: "
            "provide a mask of the image's size."
        )
        raise DataError(msg)
    return Mask(mask.to(torch.uint8))


class CheckedDataModule(AnomalibDataModule):
    """anomalib's datamodule with the arguments and defaults that this package's data sets share.

    Args:
        train_batch_size (int): Training batch size. Defaults to ``8``.
        eval_batch_size (int): Validation and test batch size. Defaults to ``8``.
        num_workers (int): Worker processes per data loader. Defaults to ``0``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where no specific ones are given. Defaults to ``None``.
        val_split_mode (ValSplitMode | str): How the validation set is made: ``from_test``, ``from_train``,
            ``same_as_test``, ``synthetic`` or ``none``. Defaults to ``ValSplitMode.FROM_TEST``: validation images are
            not tested.
        val_split_ratio (float): Share of the test (or training) images that validate, above 0 and below 1.
            Defaults to ``0.5``.
        seed (int): Seed of the splits, 0 or more; the same on each machine. Defaults to ``0``.

    Raises:
        ConfigurationError: If an argument is out of range.
    """

    def __init__(
        self,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TEST,
        val_split_ratio: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_ratio("val_split_ratio", val_split_ratio)
        check_at_least("seed", seed, 0)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=TestSplitMode.FROM_DIR,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        if self.val_split_mode == ValSplitMode.FROM_DIR:
            msg = (
                f"{type(self).__name__} has no validation folder: set val_split_mode to 'from_test', 'from_train', "
                "'same_as_test', 'synthetic' or 'none'."
            )
            raise ConfigurationError(msg)

    @abstractmethod
    def make_samples(self) -> pd.DataFrame:
        """List all images; write them first if need be.

        Returns:
            pd.DataFrame: What :class:`CheckedDataset` takes, without ``label_index`` and the task.

        Raises:
            DataError: If the data are missing, damaged or cannot be written.
        """

    def prepare_data(self) -> None:
        """Write or check the images, in one process before the others read them.

        Raises:
            DataError: If the data are missing, damaged or cannot be written.
        """
        self.make_samples()

    def _setup(self, _stage: str | None = None) -> None:
        """Set up the training and the test images."""
        samples = self.make_samples()
        samples = samples.assign(label_index=(samples.label != GOOD).astype(int))
        has_masks = (samples.mask_path != "").any()
        samples.attrs["task"] = (TaskType.SEGMENTATION if has_masks else TaskType.CLASSIFICATION).value
        self.train_data = CheckedDataset(samples[samples.split == Split.TRAIN.value])
        self.test_data = CheckedDataset(samples[samples.split == Split.TEST.value])

    def _create_test_split(self) -> None:
        """Leave the test set as it is: anomalib would take training images where no good one is tested."""


def check_ratio(name: str, value: float) -> None:
    """Refuse a share that is not strictly between 0 and 1."""
    if not 0 < value < 1:
        msg = f"{name} is {value}: set it to a number above 0 and below 1."
        raise ConfigurationError(msg)


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small."""
    if value < least:
        msg = f"{name} is {value}: set it to {least} or more."
        raise ConfigurationError(msg)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a name that is none of the choices."""
    if value not in (known := tuple(choices)):
        msg = f"{name} is '{value}': choose one of {', '.join(known)}."
        raise ConfigurationError(msg)


@contextmanager
def folder_in_progress(target: Path) -> Iterator[Path]:
    """Give a folder that becomes the target in one step when everything in it is written.

    An interrupted process leaves no half-written target, and of several processes the first to finish provides it.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=target.parent) as hidden:
            work = Path(hidden) / target.name
            work.mkdir()
            yield work
            try:
                work.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        msg = (
            f"Cannot write images to {target} ({error.strerror or error}): set root= to a folder that can be written "
            "and has space."
        )
        raise DataError(msg) from error
