"""Reading one image or mask, with an error that names the file when it cannot be used."""

from pathlib import Path

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageItem
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.utils import LabelName, ValSplitMode
from PIL import Image
from torchvision.transforms.v2.functional import to_image
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.decoding import DECODE_ERRORS, check_size, read_image
from anomalib_mixedteacher.errors import ConfigurationError, DataError


def load_image(path: str | Path) -> torch.Tensor:
    """Read an image as anomalib does, and check it.

    Args:
        path (str | Path): Image file.

    Returns:
        torch.Tensor: RGB image of shape ``(3, H, W)``, float32 in ``[0, 1]``.

    Raises:
        DataError: If the file cannot be decoded or a side is below 32 pixels.
    """
    image: torch.Tensor = read_image(path, as_tensor=True)
    check_size(path, image.shape[-2], image.shape[-1])
    return image


def load_mask(path: str | Path, size: tuple[int, int]) -> Mask:
    """Read a mask; a pixel belongs to the defect from half of full scale (128 of 255) on.

    anomalib's ``read_mask`` counts every value above 0, which widens a mask whose edges were smoothed: by half on the
    cracks of the magnetic tiles.

    Args:
        path (str | Path): Mask file.
        size (tuple[int, int]): Height and width of the image, in pixels.

    Returns:
        Mask: Mask of shape ``(H, W)``, uint8, each value 0 or 1.

    Raises:
        DataError: If the file cannot be decoded or differs in size from the image.
    """
    try:
        with Image.open(path) as file:
            mask = to_image(file.convert("L")).squeeze(0) >= 128
    except DECODE_ERRORS as error:
        msg = f"Cannot read the mask {path} ({error}): replace the file, or remove it together with its image."
        raise DataError(msg) from error
    if tuple(mask.shape) != tuple(size):
        msg = (
            f"The mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels but its image is {size[1]} x {size[0]}: "
            "provide a mask of the image's size."
        )
        raise DataError(msg)
    return Mask(mask.to(torch.uint8))


class CheckedItems(AnomalibDataset):
    """An anomalib data set whose unreadable files are reported by name, and whose masks are exactly 0 and 1."""

    def __getitem__(self, index: int) -> ImageItem:
        """Read one image with its mask.

        Args:
            index (int): Row of ``samples``.

        Returns:
            ImageItem: Image ``(3, H, W)`` in ``[0, 1]``, mask ``(H, W)`` of 0 and 1, label 0 (good) or 1 (defect).

        Raises:
            DataError: If the image or the mask cannot be read, or the image is smaller than 32 pixels on a side.
        """
        row = self.samples.iloc[index]
        image = load_image(row.image_path)
        abnormal = int(row.label_index) == LabelName.ABNORMAL
        size = (image.shape[-2], image.shape[-1])
        mask = None
        if self.task == TaskType.SEGMENTATION:
            mask = load_mask(row.mask_path, size) if abnormal else Mask(torch.zeros(size, dtype=torch.uint8))
        if self.augmentations:
            if mask is None:
                image = self.augmentations(image)
            else:
                image, mask = self.augmentations(image, mask)
        return ImageItem(
            image=image,
            gt_mask=mask,
            gt_label=torch.tensor(int(row.label_index)),
            image_path=row.image_path,
            # A missing path is NaN in newer versions of pandas.
            mask_path=row.mask_path if abnormal else None,
        )


def check_val_split(datamodule: AnomalibDataModule) -> None:
    """Check the arguments about the validation split.

    Args:
        datamodule (AnomalibDataModule): The datamodule, its base class initialised.

    Raises:
        ConfigurationError: If the mode needs a validation folder, or the ratio is not between 0 and 1.
    """
    if datamodule.val_split_mode == ValSplitMode.FROM_DIR:
        msg = (
            f"{datamodule.name} has no validation folder: set val_split_mode to 'from_test', 'from_train', "
            "'same_as_test', 'synthetic' or 'none'."
        )
        raise ConfigurationError(msg)
    check_ratio("val_split_ratio", datamodule.val_split_ratio)


def check_ratio(name: str, value: float) -> None:
    """Check a share.

    Args:
        name (str): The argument's name, for the message.
        value (float): The share.

    Raises:
        ConfigurationError: If the share is not strictly between 0 and 1.
    """
    if not 0 < value < 1:
        msg = f"{name} is {value}: set it to a number above 0 and below 1."
        raise ConfigurationError(msg)
