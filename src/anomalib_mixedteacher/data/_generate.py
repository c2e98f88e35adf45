"""Writing a category of procedural textures to disk: deterministic, and all or nothing."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from anomalib.data.utils.path import validate_path
from numpy.typing import NDArray
from PIL import Image

from anomalib_mixedteacher.cache_folder import CACHE_VARIABLE, cache_folder
from anomalib_mixedteacher.data._work_folder import remove_leftovers, work_folder
from anomalib_mixedteacher.data.defects import DEFECTS, BoolArray
from anomalib_mixedteacher.data.textures import FAMILIES, Array
from anomalib_mixedteacher.decoding import MIN_SIDE
from anomalib_mixedteacher.errors import ConfigurationError, DataError

GENERATOR_VERSION = 1
"""Raise it whenever the generated pixels change, so that no older cache is taken for the new images."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the files of one category.

    Attributes:
        category (str): Name of the texture family.
        image_size (int): Side of the square images in pixels.
        num_train (int): Good images for training.
        num_test_good (int): Good images for testing.
        num_defects_per_kind (int): Test images of each kind of defect.
        seed (int): Seed of appearance and images.

    Raises:
        ConfigurationError: If the category is unknown, or the size, a count or the seed is out of range.
    """

    category: str = "weave"
    image_size: int = 256
    num_train: int = 64
    num_test_good: int = 24
    num_defects_per_kind: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.category not in FAMILIES:
            msg = f"Unknown texture category '{self.category}': choose one of {', '.join(FAMILIES)}."
            raise ConfigurationError(msg)
        if self.image_size < MIN_SIDE:
            msg = f"image_size is {self.image_size}, smaller than {MIN_SIDE} pixels: set it to {MIN_SIDE} or more."
            raise ConfigurationError(msg)
        for name in ("num_train", "num_test_good", "num_defects_per_kind"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}: set it to 1 or more."
                raise ConfigurationError(msg)
        if self.seed < 0:
            msg = f"seed is {self.seed}: set it to 0 or more."
            raise ConfigurationError(msg)

    @property
    def key(self) -> str:
        """Folder name that encodes every argument but the category, and the generator's version."""
        return (
            f"v{GENERATOR_VERSION}-{self.image_size}px-train{self.num_train}-good{self.num_test_good}"
            f"-defects{self.num_defects_per_kind}-seed{self.seed}"
        )

    def files(self) -> Iterator[tuple[Path, str, str | None, int]]:
        """List the images.

        Yields:
            tuple[Path, str, str | None, int]: Path inside the category, split, kind of defect (None: good) and index.
        """
        counts = [("train", None, self.num_train), ("test", None, self.num_test_good)]
        for split, kind, count in [*counts, *(("test", kind, self.num_defects_per_kind) for kind in DEFECTS)]:
            # anomalib pairs images with masks by their sorted names: 1000.png comes after 100.png, 1000_mask.png before
            # 100_mask.png. Good images, which have no masks, keep the names that they have in existing folders.
            digits = 3 if kind is None else max(3, len(str(count - 1)))
            for index in range(count):
                yield Path(split, kind or "good", f"{index:0{digits}d}.png"), split, kind, index


def square_side(image_size: int | tuple[int, int]) -> int:
    """Take the side from a size; anomalib's ``get_datamodule`` turns a number into a pair.

    Args:
        image_size (int | tuple[int, int]): Side, or height and width, in pixels.

    Returns:
        int: The side in pixels.

    Raises:
        ConfigurationError: If height and width differ.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height != width:
        msg = f"image_size is {height} x {width}, but the generated images are square: set it to one number."
        raise ConfigurationError(msg)
    return height


def render(
    category: str, image_size: int, seed: int, split: str, defect: str | None, index: int
) -> tuple[Array, BoolArray]:
    """Draw one image; it depends on the arguments alone, not on how many images are drawn.

    Args:
        category (str): Name of the texture family.
        image_size (int): Side in pixels.
        seed (int): Seed, 0 or more.
        split (str): ``"train"`` or ``"test"``.
        defect (str | None): Kind of defect, None for a good image.
        index (int): Number of the image within its split and kind.

    Returns:
        tuple[Array, BoolArray]: Image ``(H, W, 3)`` in ``[0, 1]`` and mask ``(H, W)`` of its defect.
    """
    family = zlib.crc32(category.encode())
    # Python's own hash of a string changes from process to process.
    stream = zlib.crc32(f"{split}/{defect or 'good'}".encode())
    appearance = np.random.default_rng([seed, family])
    texture = FAMILIES[category](image_size, appearance, np.random.default_rng([seed, family, stream, index]))
    if defect is None:
        return texture.photograph(), np.zeros((image_size, image_size), bool)
    surface, mask = DEFECTS[defect](texture, np.random.default_rng([seed, family, stream, index, 1]))
    return texture.photograph(surface), mask


def cache_root(root: Path | str | None) -> Path:
    """Find the folder for generated textures.

    Args:
        root (Path | str | None): The user's choice. Without one: the folder named by the environment variable
            ``ANOMALIB_MIXEDTEACHER_CACHE``, else ``anomalib_mixedteacher`` below ``XDG_CACHE_HOME`` or ``~/.cache``.

    Returns:
        Path: The folder, which need not exist.

    Raises:
        DataError: If anomalib cannot work with the path (too long, or with characters beyond ASCII).
    """
    if root is None:
        root = cache_folder("synthetic_textures")
    root = Path(root).expanduser().absolute()
    try:
        validate_path(root, should_exist=False)
    except ValueError as error:
        msg = (
            f"anomalib cannot read data below {root} ({str(error).split(':')[0].lower()}): set root= or "
            f"{CACHE_VARIABLE} to a shorter path of ASCII characters."
        )
        raise DataError(msg) from error
    return root


def ensure_generated(root: Path, recipe: Recipe) -> Path:
    """Write the images of a recipe unless they are there.

    The files are written to a hidden folder next to the final one and moved there in one step: an aborted run leaves
    no half-written data set, and of several processes the first to finish provides it. What killed processes left
    below the cache folder is removed a day later.

    Args:
        root (Path): Cache folder.
        recipe (Recipe): What to generate.

    Returns:
        Path: Folder in the layout of MVTec AD: ``train/good``, ``test/<kind>``, ``ground_truth/<kind>``.

    Raises:
        DataError: If the folder cannot be written, or an earlier data set in it has lost files.
    """
    target = root / recipe.key / recipe.category
    if not target.is_dir():
        for folder in root.glob("v*-seed*"):
            remove_leftovers(folder)
        try:
            with work_folder(target) as work:
                _write(work, recipe)
                _publish(work, target)
        except OSError as error:
            reason = error.strerror or error
            msg = (
                f"Cannot write the generated textures to {root} ({reason}): set root= or {CACHE_VARIABLE} to a folder "
                "that can be written and has space."
            )
            raise DataError(msg) from error
    for path, _, kind, _ in recipe.files():
        for file in [target / path] if kind is None else [target / path, target / _mask_path(path)]:
            if not file.is_file():
                msg = f"The generated data set lacks {file}: delete the folder {target} to have it written again."
                raise DataError(msg)
    return target


def _mask_path(path: Path) -> Path:
    """Give the place of an image's mask."""
    return Path("ground_truth", path.parent.name, f"{path.stem}_mask.png")


def _write(folder: Path, recipe: Recipe) -> None:
    """Draw and write every file of a recipe."""
    for path, split, kind, index in recipe.files():
        image, mask = render(recipe.category, recipe.image_size, recipe.seed, split, kind, index)
        _save(folder / path, np.round(image * 255).astype(np.uint8))
        if kind is not None:
            _save(folder / _mask_path(path), mask.astype(np.uint8) * 255)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG; noise hardly compresses, so the fastest level is used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def _publish(work: Path, target: Path) -> None:
    """Move the finished folder to its place, or leave the place to a process that was faster."""
    try:
        work.rename(target)
    except OSError:
        if not target.is_dir():
            raise
