"""Features of frozen teachers, computed once for each image: in memory up to a budget, else in a file."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from anomalib_mixedteacher.components.feature_file import (
    FLOAT16,
    FeatureFile,
    Index,
    Shapes,
    UnfinishedFile,
    megabytes,
    open_file,
    remove_leftovers,
    row_width,
    table_size,
)
from anomalib_mixedteacher.errors import CacheError

logger = logging.getLogger(__name__)


def cache_key(**parts: Any) -> str:
    """Compute what identifies everything that features depend on besides the image.

    Args:
        parts: Plain values (numbers, strings, lists, dictionaries of them), such as the pre-processing, the input size,
            the teachers' layers and fingerprints, and the version of this package.

    Returns:
        SHA-256, hexadecimal, whatever the order of the parts.

    Raises:
        TypeError: If a part is no plain value.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class MemoryRows:
    """Rows in one block of memory, which is taken from the system as it is filled.

    Args:
        shape: Number of rows and values in each.

    Raises:
        CacheError: If the system has not so much.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        try:
            self._table = np.empty(shape, FLOAT16)
        except MemoryError as error:
            msg = (
                f"The feature cache of {megabytes(table_size(shape))} is more than the free memory: lower its memory "
                "budget, or switch it off."
            )
            raise CacheError(msg) from error

    def write(self, first: int, values: np.ndarray) -> None:
        """Write consecutive rows; see :meth:`UnfinishedFile.write`."""
        self._table[first : first + len(values)] = values

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Copy rows; see :meth:`FeatureFile.read`."""
        return self._table[rows]

    def close(self) -> None:
        """Nothing to close: the memory goes with the last reference."""


class FeatureCache:
    """Keeps the teachers' features of each image as one row of float16.

    A complete file of an earlier run serves at once. It is left alone if an image comes that it does not hold: the
    cache then begins anew, and the new file replaces the old one when it is complete.

    Args:
        key: What the features depend on besides the image; see :func:`cache_key`.
        capacity: Number of distinct images that will come.
        memory_budget: Bytes from which on a file is used instead of memory.
        folder: Where files are; made when the first one is needed. Without a folder there is no file. What killed
            processes left unfinished in it is removed, and what was not used for long.
    """

    def __init__(self, key: str, capacity: int, memory_budget: int, folder: Path | None = None) -> None:
        self._key = key
        self._capacity = capacity
        self._memory_budget = memory_budget
        self._folder = folder
        self._shapes: Shapes = {}
        self._rows: dict[str, int] = {}
        self._store: MemoryRows | FeatureFile | None = None
        self._reused = False
        if folder is not None:
            self._reuse(folder)
            remove_leftovers(folder)

    @property
    def complete(self) -> bool:
        """Whether as many images are there as will come."""
        return self._store is not None and len(self._rows) >= self._capacity

    @property
    def bytes_per_image(self) -> int:
        """Size of one row in bytes; 0 before the first :meth:`put`."""
        return row_width(self._shapes) * FLOAT16.itemsize

    @property
    def in_memory(self) -> bool:
        """Whether the rows are in memory; not so before the first :meth:`put`."""
        return isinstance(self._store, MemoryRows)

    def put(self, digests: Sequence[str], features: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Keep the features of a batch; images that are there already are not written again.

        Args:
            digests: SHA-256 of each image file's content.
            features: The teachers' maps of shape ``(B, C_i, H_i, W_i)`` by teacher name, on any device.

        Raises:
            CacheError: If the features cannot be kept: there is no room for them, a value is not finite in float16,
                images differ in the shapes of their maps, or there are more images than announced. No row is added
                then; without room, the cache is empty afterwards.
        """
        shapes: Shapes = {name: [tuple(part.shape[1:]) for part in maps] for name, maps in features.items()}
        if self._reused and not (shapes == self._shapes and self._rows.keys() >= set(digests)):
            self.close()
        counts = {len(part) for maps in features.values() for part in maps}
        if counts != {len(digests)} or self._shapes not in ({}, shapes):
            msg = (
                "The teachers' features do not have the same shapes for all images: resize the images in the "
                "pre-processor, or switch the feature cache off."
            )
            raise CacheError(msg)
        new = {digest: position for position, digest in enumerate(digests) if digest not in self._rows}
        if not new:
            return
        if len(self._rows) + len(new) > self._capacity:
            msg = (
                f"More than the {self._capacity} images that the feature cache was made for have come: keep the images "
                "as they are while training, or switch the cache off."
            )
            raise CacheError(msg)
        values = _as_rows([part[list(new.values())] for name in self._shapes or shapes for part in features[name]])
        try:
            self._write(list(new), values, shapes)
        except CacheError:
            self.close()
            raise

    def get(self, digests: Sequence[str], device: torch.device | str = "cpu") -> dict[str, list[torch.Tensor]] | None:
        """Give the features of a batch.

        Args:
            digests: SHA-256 of each image file's content.
            device: Where the maps are needed. A GPU is not waited for.

        Returns:
            float32 maps of shape ``(B, C_i, H_i, W_i)`` by teacher name, in memory of their own; ``None`` unless all
            images are there. A damaged file is removed, and none is there then.
        """
        if self._store is None or not self._rows.keys() >= set(digests):
            return None
        try:
            values = torch.from_numpy(self._store.read([self._rows[digest] for digest in digests]))
        except CacheError as error:
            logger.warning("The teachers' features are computed again: %s", error)
            if isinstance(self._store, FeatureFile):
                self._store.discard()
            self.close()
            return None
        if torch.device(device).type == "cuda":  # from memory that is not pinned, a copy waits for the GPU's queue
            values = values.pin_memory().to(device, non_blocking=True)
        values = values.to(device)
        parts = iter(values.split([prod(shape) for maps in self._shapes.values() for shape in maps], dim=1))
        return {
            name: [next(parts).to(torch.float32).contiguous().view(len(digests), *shape) for shape in maps]
            for name, maps in self._shapes.items()
        }

    def close(self) -> None:
        """Release the memory or the file; a file that is not complete is removed."""
        if self._store is not None:
            self._store.close()
        self._store, self._shapes, self._rows, self._reused = None, {}, {}, False

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reuse(self, folder: Path) -> None:
        found = open_file(folder, self._key)
        if found is None:
            return
        self._store, index = found
        self._shapes = index.shapes
        self._rows = {digest: row for row, digest in enumerate(index.digests)}
        self._reused = True
        if not self.complete:  # some image that will come is not in it
            self.close()

    def _write(self, digests: Sequence[str], values: np.ndarray, shapes: Shapes) -> None:
        store = self._store
        if not isinstance(store, MemoryRows | UnfinishedFile):
            store = self._store = self._allocate(shapes)
            self._shapes = shapes
        first = len(self._rows)
        store.write(first, values)
        self._rows |= {digest: first + offset for offset, digest in enumerate(digests)}
        if isinstance(store, UnfinishedFile) and self.complete:
            self._store = store.publish(Index(self._key, self._shapes, list(self._rows)))

    def _allocate(self, shapes: Shapes) -> MemoryRows | UnfinishedFile:
        shape = self._capacity, row_width(shapes)
        size = table_size(shape)
        if size <= self._memory_budget:
            return MemoryRows(shape)
        if self._folder is None:
            msg = (
                f"The teachers' features of {self._capacity} images need {megabytes(size)}, and the feature cache's "
                f"memory budget is {self._memory_budget // 10**6:,} MB: raise it, give a folder for a file, or switch "
                "the cache off."
            )
            raise CacheError(msg)
        return UnfinishedFile(self._folder, self._key, shape)


def _as_rows(maps: Sequence[torch.Tensor]) -> np.ndarray:
    """Round the maps to float16 and lay each image's out in one row."""
    # joined in numpy: under autocast torch on the CPU does not join float16
    rows = np.concatenate([part.detach().to(torch.float16).flatten(1).cpu().numpy() for part in maps], axis=1)
    if not np.isfinite(rows).all():
        msg = (
            f"The teachers' features hold NaN or values beyond float16's {torch.finfo(torch.float16).max:.0f}: switch "
            "the feature cache off."
        )
        raise CacheError(msg)
    return rows
