"""Procedural textures with defects as an anomalib data set: no download, nothing to label, exact masks."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anomalib.data.utils import Split
from numpy.typing import NDArray
from PIL import Image

from anomalib_mixedteacher.data.base import (
    GOOD,
    CheckedDataModule,
    check_at_least,
    check_choice,
    folder_in_progress,
)
from anomalib_mixedteacher.data.defects import DEFECTS, BoolArray
from anomalib_mixedteacher.data.textures import FAMILIES, Array
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from mixedteacher_edge.decoding import MIN_SIDE

GENERATOR_VERSION = 2
"""Raise it whenever the generated pixels change, so that no older cache is taken for the new images."""
CACHE_VARIABLE = "ANOMALIB_MIXEDTEACHER_CACHE"


class SyntheticTextures(CheckedDataModule):
    """Datamodule of procedural textures: works offline, and its masks are exact.

    The images are generated at first use. The same arguments give the same images; an image does not depend on how many
    are asked for. Defects are ``scratch``, ``stain``, ``hole``, ``missing_thread``, ``misaligned_patch`` and
    ``contrast_blob``; the kind of an image is in the column ``label`` of the test samples.

    Args:
        root (Path | str | None): Cache folder. Defaults to ``None``: ``synthetic_textures`` in the folder named by the
            environment variable ``ANOMALIB_MIXEDTEACHER_CACHE``, or in ``anomalib_mixedteacher`` below
            ``XDG_CACHE_HOME`` or ``~/.cache``.
        category (str): Texture family: ``weave``, ``grain``, ``grid``, ``cells`` or ``speckle``.
            Defaults to ``"weave"``.
        image_size (int | tuple[int, int]): Side of the square images in pixels, at least 32. One above 256 shows more
            of the surface, with threads and defects of the same size. Defaults to ``256``.
        num_train (int): Good training images, at least 1. Defaults to ``64``.
        num_test_good (int): Good test images, at least 1. Defaults to ``24``.
        num_defects_per_kind (int): Test images of each of the six kinds of defect, at least 1. Defaults to ``6``.
        seed (int): Seed of the product's appearance, of the images and of the validation split, 0 or more.
            Defaults to ``0``.
        **kwargs: See :class:`~anomalib_mixedteacher.data.base.CheckedDataModule`.

    Raises:
        ConfigurationError: If the category is unknown, or an argument is out of range.
        DataError: If the cache folder cannot be written or has lost files (raised when the data are prepared).

    Example:
        >>> from anomalib_mixedteacher.data import SyntheticTextures
        >>> datamodule = SyntheticTextures(category="grid", image_size=64, num_train=8)
        >>> datamodule.setup()
        >>> next(iter(datamodule.train_dataloader())).image.shape
        torch.Size([8, 3, 64, 64])
    """

    def __init__(
        self,
        root: Path | str | None = None,
        category: str = "weave",
        image_size: int | tuple[int, int] = 256,
        num_train: int = 64,
        num_test_good: int = 24,
        num_defects_per_kind: int = 6,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        # anomalib's get_datamodule turns a number into a pair
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height != width:
            msg = f"image_size is {height} x {width}, but the generated images are square: set it to one number."
            raise ConfigurationError(msg)
        check_choice("category", category, FAMILIES)
        check_at_least("image_size", height, MIN_SIDE)
        check_at_least("num_train", num_train, 1)
        check_at_least("num_test_good", num_test_good, 1)
        check_at_least("num_defects_per_kind", num_defects_per_kind, 1)
        self.root = (cache_folder() if root is None else Path(root).expanduser()).absolute()
        self.category, self.image_size = category, height
        self.num_train, self.num_test_good, self.num_defects_per_kind = num_train, num_test_good, num_defects_per_kind

    def make_samples(self) -> pd.DataFrame:
        """Generate the images unless they are there, in the layout of MVTec AD, and list them."""
        counts = [("train", GOOD, self.num_train), ("test", GOOD, self.num_test_good)]
        counts += [("test", kind, self.num_defects_per_kind) for kind in DEFECTS]
        images = [(split, label, index) for split, label, count in counts for index in range(count)]
        key = (  # everything that decides the images, the category aside
            f"v{GENERATOR_VERSION}-{self.image_size}px-train{self.num_train}-good{self.num_test_good}"
            f"-defects{self.num_defects_per_kind}-seed{self.seed}"
        )
        folder = self.root / key / self.category
        if not folder.is_dir():
            with folder_in_progress(folder) as work:
                for split, label, index in images:
                    image, mask = render(self.category, self.image_size, self.seed or 0, split, label, index)
                    _save(work / _image(split, label, index), np.round(image * 255).astype(np.uint8))
                    if label != GOOD:
                        _save(work / _mask(label, index), mask.astype(np.uint8) * 255)
        samples = pd.DataFrame(
            {
                "image_path": str(folder / _image(split, label, index)),
                "label": label,
                "mask_path": "" if label == GOOD else str(folder / _mask(label, index)),
                "split": Split(split).value,
            }
            for split, label, index in images
        )
        for path in [*samples.image_path, *filter(None, samples.mask_path)]:
            if not Path(path).is_file():
                msg = f"The generated data set lacks {path}: delete the folder {folder} to have it written again."
                raise DataError(msg)
        return samples


def cache_folder() -> Path:
    """Find the folder for generated images; a DataError says that there is no home directory for it."""
    own, base = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(own).expanduser() if own else Path(base or Path.home() / ".cache") / "anomalib_mixedteacher"
    except RuntimeError as error:
        msg = f"There is no home directory for generated images: name another place by {CACHE_VARIABLE}."
        raise DataError(msg) from error
    return cache / "synthetic_textures"


def render(category: str, image_size: int, seed: int, split: str, label: str, index: int) -> tuple[Array, BoolArray]:
    """Draw one image ``(H, W, 3)`` in ``[0, 1]`` and the mask ``(H, W)`` of its defect.

    It depends on the arguments alone, not on how many images are drawn: the split is ``"train"`` or ``"test"``, the
    label a kind of defect or ``"good"``, the index the image's number within its split and kind.
    """
    family = zlib.crc32(category.encode())
    # Python's own hash of a string changes from process to process.
    stream = zlib.crc32(f"{split}/{label}".encode())
    appearance = np.random.default_rng([seed, family])
    texture = FAMILIES[category](image_size, appearance, np.random.default_rng([seed, family, stream, index]))
    if label == GOOD:
        return texture.photograph(), np.zeros((image_size, image_size), bool)
    surface, mask = DEFECTS[label](texture, np.random.default_rng([seed, family, stream, index, 1]))
    return texture.photograph(surface), mask


def _image(split: str, label: str, index: int) -> Path:
    return Path(split, label, f"{index:03d}.png")


def _mask(label: str, index: int) -> Path:
    return Path("ground_truth", label, f"{index:03d}_mask.png")


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG; noise hardly compresses, so the fastest level is used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)
