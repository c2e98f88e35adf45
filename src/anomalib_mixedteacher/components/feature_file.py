"""A file of feature rows: filled under a temporary name, put in place when it is complete, then only read.

``features-<key>.f16`` holds the rows and, behind them, the SHA-256 of ``features-<key>.json``, its index. The two are
renamed one after the other, and two processes may do so at once; a pair that does not belong together is so found out.
The index has a checksum of each row, with which a row is compared when it is read for the first time.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from anomalib_mixedteacher.cache_folder import mark_used, remove_unused
from anomalib_mixedteacher.errors import CacheError

try:
    import fcntl
except ImportError:  # Windows, which refuses to remove an open file: the lock file then protects itself
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
FLOAT16 = np.dtype("<f2")
_CHECKSUM_BYTES = 32
_CHUNK = 2**20
_PREFIX = "features-"
_KEY_LENGTH = 16
_UNFINISHED = ".tmp"
_LOCK = "lock"

Shapes = dict[str, list[tuple[int, ...]]]


@dataclass(frozen=True)
class Index:
    """What a file of rows holds.

    Attributes:
        key: What the features depend on besides the image; see :func:`~.feature_cache.cache_key`.
        shapes: Shape ``(C_i, H_i, W_i)`` of each map, by teacher name, in the order in which they fill a row.
        digests: The images, in the order of the rows.
        checksums: CRC-32 of each row.
    """

    key: str
    shapes: Shapes
    digests: list[str]
    checksums: list[int] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        """The index as it is written."""
        return json.dumps({"format": FORMAT} | asdict(self)).encode()


def row_width(shapes: Shapes) -> int:
    """Count the values of one image."""
    return sum(prod(shape) for maps in shapes.values() for shape in maps)


def table_size(shape: tuple[int, int]) -> int:
    """Count the bytes of rows, given how many there are and the values in each."""
    return prod(shape) * FLOAT16.itemsize


def megabytes(size: int) -> str:
    """Write a number of bytes for a message, rounded up."""
    return f"{-(-size // 10**6):,} MB"


class FeatureFile:
    """A file of rows, open for reading.

    Args:
        file: The file.
        shape: Number of rows and values in each.
        checksums: CRC-32 of each row; those without are not checked.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, int], checksums: Sequence[int] = ()) -> None:
        self._file = file
        self._shape = shape
        self._unchecked = dict(enumerate(checksums))

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Copy rows out of the file.

        Args:
            rows: Their numbers.

        Returns:
            float16 array of shape ``(len(rows), width)``.

        Raises:
            CacheError: If a row is not what was written.
        """
        # Mapped for one batch at a time: as long as a file is mapped, the pages read count as the process's memory.
        values = np.memmap(self._file, FLOAT16, mode="r", shape=self._shape)[rows]
        for row, content in zip(rows, values, strict=True):
            if row in self._unchecked and zlib.crc32(content.data) != self._unchecked.pop(row):
                msg = f"The feature cache's file {self._file.name} is damaged: check the disk if this comes again."
                raise CacheError(msg)
        return values

    def discard(self) -> None:
        """Close the file and remove it with its index, where they may be removed."""
        self.close()
        data = Path(self._file.name)
        for path in (data, data.with_suffix(".json")):
            with suppress(OSError):
                path.unlink()

    def close(self) -> None:
        """Close the file, which stays where it is."""
        self._file.close()


class UnfinishedFile(FeatureFile):
    """A file of rows that is being filled, in a temporary folder of its own.

    The folder is removed by :meth:`close`, at the latest when the interpreter ends, and after a killed process by
    :func:`remove_leftovers`.

    Args:
        folder: Where the complete file will be; made if it does not exist.
        key: What the features depend on besides the image.
        shape: Number of rows and values in each.

    Raises:
        CacheError: If the folder cannot be written or has too little space; nothing is left behind.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int]) -> None:
        self._folder = folder
        self._paths = _paths(folder, key)
        self._size = table_size(shape) + _CHECKSUM_BYTES
        self._remove: weakref.finalize | None = None
        with self._removed_on_failure():
            folder.mkdir(parents=True, exist_ok=True)
            prefix = f"{self._paths[0].stem}-"
            self._temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=_UNFINISHED, dir=folder))
            files: list[BinaryIO] = []
            self._remove = weakref.finalize(self, _remove, self._temporary, files, os.getpid())
            files.append((self._temporary / _LOCK).open("xb"))
            with suppress(OSError):  # a file system without locks: nobody will take this folder for abandoned
                _lock(files[0])
            files.append((self._temporary / "rows").open("x+b"))
            _reserve(files[1], self._size)
            super().__init__(files[1], shape)
            self._checksums: dict[int, int] = {}

    def write(self, first: int, values: np.ndarray) -> None:
        """Write consecutive rows.

        Args:
            first: Number of the first one.
            values: float16 array of shape ``(rows, width)``.

        Raises:
            CacheError: If the disk is full nevertheless, as copy-on-write file systems can be; nothing is left behind.
        """
        values = np.ascontiguousarray(values, FLOAT16)
        with self._removed_on_failure():
            self._file.seek(first * self._shape[1] * FLOAT16.itemsize)
            self._file.write(values.data)
            self._file.flush()
        self._checksums |= {first + offset: zlib.crc32(content.data) for offset, content in enumerate(values)}

    def publish(self, index: Index) -> FeatureFile:
        """Put the complete file in place.

        Args:
            index: What was written; it gets its checksums here.

        Returns:
            The file in its place, open for reading; this one is closed.

        Raises:
            CacheError: If the file cannot be put in place; nothing is left behind.
        """
        index = replace(index, checksums=[self._checksums[row] for row in range(len(index.digests))])
        checksum = hashlib.sha256(index.content).digest()
        with self._removed_on_failure():
            self._file.seek(self._size - _CHECKSUM_BYTES)
            self._file.write(checksum)
            _synchronize(self._file)
            self._file.close()  # Windows renames no open file
            with (self._temporary / "index").open("xb") as file:
                file.write(index.content)
                _synchronize(file)
            data, note = self._paths
            (self._temporary / "rows").replace(data)
            try:
                (self._temporary / "index").replace(note)
            except OSError:
                data.unlink()
                raise
            published = data.open("rb")
            if _checksum(published) != checksum:
                published.close()
                msg = "another process wrote there at the same time"
                raise OSError(msg)
        self.close()
        return FeatureFile(published, self._shape)

    def close(self) -> None:
        """Close the file and remove it."""
        if self._remove is not None:
            self._remove()

    @contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            msg = (
                f"The feature cache of {megabytes(self._size)} cannot be written to {self._folder} "
                f"({error.strerror or error}): free space there, give another folder, or switch the cache off."
            )
            raise CacheError(msg) from error


def open_file(folder: Path, key: str) -> tuple[FeatureFile, Index] | None:
    """Open a complete file.

    Args:
        folder: Where it is.
        key: What the features depend on besides the image.

    Returns:
        The file and its index; ``None`` if there is none for this key, or if the index is damaged or they do not belong
        together. Rows are checked as they are read.
    """
    data, note = _paths(folder, key)
    try:
        content = note.read_bytes()
        index = _parse(content)
        shape = len(index.digests), row_width(index.shapes)
        file = data.open("rb")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    size = os.fstat(file.fileno()).st_size
    whole = size == table_size(shape) + _CHECKSUM_BYTES
    if index.key == key and whole and _checksum(file) == hashlib.sha256(content).digest():
        mark_used(data, note)
        return FeatureFile(file, shape, index.checksums), index
    file.close()
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder, and what was not used for long.

    What a live process is filling stays. Liveness is a lock that ends with its process, not a process number:
    containers that share a folder have the same numbers for different processes, and the same again after a restart.

    Args:
        folder: Where the caches are; it need not exist.
    """
    for temporary in folder.glob(f"{_PREFIX}*{_UNFINISHED}"):
        with suppress(OSError):  # a live process's, another user's, or just removed by another process
            with (temporary / _LOCK).open("r+b") as lock:
                _lock(lock)
            (temporary / _LOCK).unlink()
            shutil.rmtree(temporary)
    remove_unused(folder, re.compile(rf"{_PREFIX}[0-9a-f]{{{_KEY_LENGTH}}}\.(f16|json)"))


def _paths(folder: Path, key: str) -> tuple[Path, Path]:
    name = f"{_PREFIX}{key[:_KEY_LENGTH]}"
    return folder / f"{name}.f16", folder / f"{name}.json"


def _parse(content: bytes) -> Index:
    values = json.loads(content)
    if values["format"] != FORMAT:
        msg = "another format"
        raise ValueError(msg)
    shapes = {name: [tuple(shape) for shape in maps] for name, maps in values["shapes"].items()}
    index = Index(values["key"], shapes, values["digests"], values["checksums"])
    if len(index.checksums) != len(index.digests):
        msg = "not one checksum for each row"
        raise ValueError(msg)
    return index


def _lock(file: BinaryIO) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the whole space at once, so that a full disk is an error here and not in the middle of an epoch.

    A sparse file would take it page by page as it is filled; were it filled through its memory map, the page that finds
    no room would end the process by SIGBUS, which nothing can catch. For the same reason rows are written, not mapped.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, _CHUNK):
        file.write(bytes(min(_CHUNK, size - start)))
    file.flush()


def _synchronize(file: BinaryIO) -> None:
    """Bring a file to the disk: renamed before, it could hold the reserved space's zeros after a power failure."""
    file.flush()
    os.fsync(file.fileno())


def _checksum(file: BinaryIO) -> bytes:
    """Read which index a file of rows was written with."""
    file.seek(-_CHECKSUM_BYTES, os.SEEK_END)
    return file.read()


def _remove(folder: Path, files: list[BinaryIO], process: int) -> None:
    if os.getpid() != process:  # a data loader's forked worker: the file is its parent's
        return
    for file in files:
        with suppress(OSError):
            file.close()
    shutil.rmtree(folder, ignore_errors=True)
