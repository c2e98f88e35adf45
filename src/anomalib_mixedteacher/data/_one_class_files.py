"""Local copies of MNIST, Fashion-MNIST and CIFAR-10: found, read without running anything, and written as PNG files."""

import gzip
import hashlib
import io
import logging
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from anomalib.data.utils import Split
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from anomalib_mixedteacher.data._work_folder import remove_leftovers, work_folder
from anomalib_mixedteacher.decoding import MIN_SIDE
from anomalib_mixedteacher.errors import DataError

logger = logging.getLogger(__name__)

CLASSES: dict[str, tuple[str, ...]] = {
    "MNIST": tuple(datasets.MNIST.classes),
    "FashionMNIST": tuple(datasets.FashionMNIST.classes),
    # torchvision reads these from a file of the data set.
    "CIFAR10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
"""torchvision's names of the classes, by data set."""

EXTRACTION_VERSION = 1
"""Raise it whenever the written pixels change, so that no older file is taken for a new one."""

Pixels: TypeAlias = NDArray[np.uint8]
Content = TypeVar("Content")

_STAMP = "source.sha256"
_IDX_FILES: dict[Split, tuple[str, ...]] = {
    Split.TRAIN: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    Split.TEST: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CIFAR_FILES: dict[Split, tuple[str, ...]] = {
    Split.TRAIN: tuple(f"data_batch_{index}" for index in range(1, 6)),
    Split.TEST: ("test_batch",),
}
_SHAPES = {"MNIST": (28, 28), "FashionMNIST": (28, 28), "CIFAR10": (32, 32, 3)}


def require_copy(root: Path, dataset: str, download: bool) -> None:
    """Check that a data set's files are there; only where they are not, and if allowed to, let torchvision fetch them.

    Args:
        root (Path): Folder in torchvision's layout.
        dataset (str): ``MNIST``, ``FashionMNIST`` or ``CIFAR10``.
        download (bool): Fetch what is missing.

    Raises:
        DataError: If a file is missing, or cannot be fetched.
    """
    folder = _folder(root, dataset)
    names = [name for files in _files(dataset).values() for name in files]
    missing = [name for name in names if not _find(folder, name).is_file()]
    if not missing:
        return
    if not download:
        form = ", as such or with .gz" if _files(dataset) is _IDX_FILES else ""
        msg = (
            f"{dataset} lacks {missing[0]} in {folder}: put the published files {', '.join(names)} there{form}, pass "
            "another folder as root=, or set download=True to fetch them."
        )
        raise DataError(msg)
    try:
        getattr(datasets, dataset)(str(root), download=True)
    except Exception as error:  # of the network, of the disk, or of the archive
        msg = f"Cannot download {dataset} to {root} ({_reason(error)}): try again, or put its files in {folder}."
        raise DataError(msg) from error


def read_split(root: Path, dataset: str, split: Split) -> tuple[Pixels, NDArray[np.int64]]:
    """Read the images and classes of an official split.

    Args:
        root (Path): Folder in torchvision's layout; see :func:`require_copy`.
        dataset (str): ``MNIST``, ``FashionMNIST`` or ``CIFAR10``.
        split (Split): ``Split.TRAIN`` or ``Split.TEST``.

    Returns:
        tuple[Pixels, NDArray[np.int64]]: Images ``(N, 28, 28)`` or ``(N, 32, 32, 3)``, and class indices ``(N,)`` from
            0 to 9.

    Raises:
        DataError: If a file is damaged, or the files do not fit each other.
    """
    folder, names = _folder(root, dataset), _files(dataset)[split]
    if dataset == "CIFAR10":
        batches = [_parse(_find(folder, name), _cifar_batch) for name in names]
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    else:
        images = _parse(_find(folder, names[0]), partial(_idx, dimensions=3))
        labels = _parse(_find(folder, names[1]), partial(_idx, dimensions=1)).astype(np.int64)
    count, *shape = images.shape
    if tuple(shape) != _SHAPES[dataset] or len(labels) != count or not set(labels.tolist()) <= set(range(10)):
        msg = (
            f"The {split.value} files of {dataset} in {folder} hold {count} images of shape {tuple(shape)} and "
            f"{len(labels)} classes, not as many of both, of shape {_SHAPES[dataset]} and in 0 to 9: replace them by "
            "the published files."
        )
        raise DataError(msg)
    return images, labels


def extract_class(folder: Path, images: Pixels, indices: NDArray[np.int64]) -> list[Path]:
    """Write the images of one class as PNG files unless they are there.

    They are written to a hidden folder beside the final one, which is renamed when complete: an aborted run leaves no
    half-written class. The folder carries a checksum of the pixels: after a change of the source it is written anew,
    and also if it has lost a file.

    Args:
        folder (Path): Folder of the class.
        images (Pixels): The class's images ``(N, H, W)`` or ``(N, H, W, 3)``; those smaller than 32 pixels on a side
            are resized to 32 x 32, bilinearly.
        indices (NDArray[np.int64]): Their places ``(N,)`` in the official split, which name the files.

    Returns:
        list[Path]: The files, in the order of the images.

    Raises:
        DataError: If the folder cannot be written.
    """
    names = [f"{index:05d}.png" for index in indices]
    digest = hashlib.sha256(f"{EXTRACTION_VERSION} {images.shape}".encode())
    digest.update(images.tobytes())
    stamp = digest.hexdigest()
    if not _is_complete(folder, names, stamp):
        logger.info("Writing %d images to %s", len(names), folder)
        remove_leftovers(folder.parent)
        try:
            with work_folder(folder) as work:
                for name, pixels in zip(names, images, strict=True):
                    _enlarged(Image.fromarray(pixels)).save(work / name)
                (work / _STAMP).write_text(stamp)
                _publish(work, folder, partial(_is_complete, folder, names, stamp))
        except OSError as error:
            msg = (
                f"Cannot write images to {folder} ({error.strerror or error}): pass as root= a folder that can be "
                "written and has space."
            )
            raise DataError(msg) from error
    return [folder / name for name in names]


def _folder(root: Path, dataset: str) -> Path:
    """Give the folder where torchvision keeps a data set's files."""
    return root / "cifar-10-batches-py" if dataset == "CIFAR10" else root / dataset / "raw"


def _files(dataset: str) -> dict[Split, tuple[str, ...]]:
    """Give the names of a data set's files by split."""
    return _CIFAR_FILES if dataset == "CIFAR10" else _IDX_FILES


def _find(folder: Path, name: str) -> Path:
    """Give the path of a file, or of its compressed form where only that can be there."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _parse(path: Path, parse: Callable[[bytes], Content]) -> Content:
    """Read and decode a file; one that cannot be is named."""
    try:
        content = path.read_bytes()
        return parse(gzip.decompress(content) if path.suffix == ".gz" else content)
    except Exception as error:  # a damaged pickle can raise anything
        msg = (
            f"Cannot read {path} ({_reason(error)}): replace it by the published file, or delete it and set "
            "download=True."
        )
        raise DataError(msg) from error


def _reason(error: Exception) -> str:
    """Give what an error says on one line; torchvision's messages run over several."""
    return " ".join(str(error).split()) or type(error).__name__


def _idx(content: bytes, dimensions: int) -> Pixels:
    """Decode an IDX file: two zeros, 8 for uint8, the number of dimensions, the sizes big-endian, the values."""
    if content[:4] != bytes((0, 0, 8, dimensions)):
        msg = f"it is not an IDX file of {dimensions}-dimensional uint8 data"
        raise ValueError(msg)
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape.tolist())


def _cifar_batch(content: bytes) -> tuple[Pixels, NDArray[np.int64]]:
    """Decode a batch of CIFAR-10: a pickled dictionary of pixels ``(N, 3 * 32 * 32)`` and a list of classes."""
    batch = _InertUnpickler(io.BytesIO(content), encoding="latin1").load()
    array = batch["data"]
    if array.state is None:  # pickle protocol 5
        pixels, _, shape, order = array.args
    else:
        _, shape, _, by_columns, pixels = array.state
        order = "F" if by_columns else "C"
    if isinstance(pixels, _Inert):  # Python 3 in protocols 0 to 2
        pixels = pixels.args[0]
    if isinstance(pixels, str):
        pixels = pixels.encode("latin1")
    values = np.frombuffer(pixels, np.uint8).reshape(shape, order=order)
    return values.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(batch["labels"], np.int64)


class _Inert:
    """What stands for each object in a pickle: it keeps what it was built from and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Unpickler that imports and calls nothing.

    ``pickle.load`` runs whatever a file tells it to. torchvision guards it by the checksums of the published files, so
    that it can read no other file; here any file can be read, since numpy's arrays stay the raw data that they came as.
    """

    _PARTS_OF_ARRAYS = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
        | {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
    )

    def find_class(self, module: str, name: str) -> type[_Inert]:
        """Give the stand-in for the parts of numpy arrays, and refuse the rest."""
        if (module, name) not in self._PARTS_OF_ARRAYS:
            msg = f"it asks to run {module}.{name}, which no batch of CIFAR-10 does"
            raise pickle.UnpicklingError(msg)
        return _Inert


def _is_complete(folder: Path, names: list[str], stamp: str) -> bool:
    """Tell whether a folder holds the named files, written from the stamped source."""
    try:
        present = {path.name for path in folder.iterdir()}
        return present >= set(names) and (folder / _STAMP).read_bytes() == stamp.encode()
    except OSError:  # it is not there, or will be reported when it is written
        return False


def _enlarged(image: Image.Image) -> Image.Image:
    """Bring an image to the size that the models need; MKD's authors enlarge MNIST so."""
    if min(image.size) >= MIN_SIDE:
        return image
    return image.resize((MIN_SIDE, MIN_SIDE), Image.Resampling.BILINEAR)


def _publish(work: Path, target: Path, is_complete: Callable[[], bool]) -> None:
    """Move the finished folder to the place of an outdated one, or leave the place to a process that was faster."""
    if is_complete():
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        work.rename(target)
    except OSError:
        if not is_complete():
            raise
