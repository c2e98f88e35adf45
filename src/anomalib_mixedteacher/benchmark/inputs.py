"""The images and weights that a cell was trained with, so that one whose files changed is not taken for finished."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_mixedteacher.benchmark.plan import image_folders
from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.components.weights import SOURCES

_GENERATED = ("OneClass", "SyntheticTextures")  # made of their arguments; other categories' files come beside them
_LENGTH = 16


def digests(cell: Cell) -> dict[str, str]:
    """Sum up the files that a cell's arguments name: images, masks and weights.

    Args:
        cell: The cell. Of a data set with a root, images count in the folders below it that arguments name, else in the
            whole root. Images that this package generates do not count: their arguments decide them.

    Returns:
        By argument, a digest of its files' names, sizes and times of change. An argument without any file is left out,
        also when its files are merely out of reach.
    """
    found = {**_weights(cell), **_images(cell)}
    return {name: _digest(files) for name, files in found.items() if files}


def changed(cell: Cell, before: Mapping[str, str]) -> bool:
    """Tell whether the files that can be reached are others than before.

    Args:
        cell: The cell.
        before: What :func:`digests` gave when it was trained.
    """
    return any(before.get(name, digest) != digest for name, digest in digests(cell).items())


_Files = list[tuple[str, Path]]


def _weights(cell: Cell) -> dict[str, _Files]:
    named = {name: Path(value) for name, value in cell.init_args.items() if isinstance(value, str)}
    files = {name: [(path.name, path)] for name, path in named.items() if path.is_file()}
    weights = Path(cell.teacher_weights)
    if cell.teacher_weights not in SOURCES:
        files["teacher_weights"] = [(weights.name, weights)] if weights.is_file() else list(_below(weights))
    return files


def _images(cell: Cell) -> dict[str, _Files]:
    if cell.data_class.rpartition(".")[2] in _GENERATED:
        return {}
    root, named = cell.data_args.get("root"), image_folders(cell.data_args)
    if root is not None and "category" in cell.data_args:
        named["category"] = [str(cell.data_args["category"])]
    places = {name: [Path(root or ".") / folder for folder in folders] for name, folders in named.items()}
    places = {name: paths for name, paths in places.items() if any(path.exists() for path in paths)}
    if root is not None and not places:
        places = {"root": [Path(root)]}
    return {
        name: [(f, path) for place in paths for f, path in _below(place) if path.suffix.lower() in IMG_EXTENSIONS]
        for name, paths in places.items()
    }


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Find files with their names within the folder, hidden ones left out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def _digest(files: _Files) -> str:
    known = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        known.update(f"{name}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
    return known.hexdigest()[:_LENGTH]
