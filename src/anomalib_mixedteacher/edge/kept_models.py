"""Compiled models in a folder, found by their files' checksums: a start need neither read the model nor compile it.

OpenVINO's own cache (``CACHE_DIR``) reads the model and hashes its weights at each start to find what it kept. The
record beside a model has the checksums already.
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import openvino
from numpy.typing import NDArray

from anomalib_mixedteacher.cache_folder import mark_used, remove_unused

_FORMAT = 2  # a compiled model, and its SHA-256 behind it
_KEY_LENGTH = 32
_DIGEST_LENGTH = 32
_CHUNK = 2**20
_NAMES = re.compile(rf"[0-9a-f]{{{_KEY_LENGTH}}}-(uint8|float32)\.(blob|\d+-\d+\.part)")

logger = logging.getLogger(__name__)


class KeptModels:
    """The compiled forms of one model for one device and its settings.

    Args:
        core: OpenVINO.
        folder: Where they are kept.
        files: SHA-256 of each of the model's files, by name.
        device: A device for which :func:`can_keep` holds.
        properties: OpenVINO's properties.
    """

    def __init__(
        self, core: openvino.Core, folder: Path, files: Mapping[str, str], device: str, properties: Mapping[str, Any]
    ) -> None:
        self._core = core
        self._folder = folder
        self._device = device
        self._properties = dict(properties)
        capabilities = sorted(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
        name = core.get_property(device, "FULL_DEVICE_NAME")
        settings = [_FORMAT, openvino.__version__, device, name, capabilities, self._properties, sorted(files.values())]
        self._mapped: list[NDArray[np.uint8]] = []  # compiled models may point into their files
        self._key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]

    def load(self, bytes_input: bool) -> openvino.CompiledModel | None:
        """Load what was kept.

        Args:
            bytes_input: The form that takes uint8 rather than float32.

        Returns:
            The compiled model; ``None`` if it was not kept, or cannot be used.
        """
        path = self._path(bytes_input)
        try:
            with path.open("rb") as file, ThreadPoolExecutor(1) as background:
                content = np.memmap(file, np.uint8, mode="c")  # OpenVINO asks for writable memory
                whole = background.submit(_is_whole, file)
                blob = openvino.Tensor(content[:-_DIGEST_LENGTH], shared_memory=True)
                compiled = self._core.import_model(blob, self._device, self._properties)
            if not whole.result():
                raise ValueError(path)
        except FileNotFoundError:
            return None
        except TypeError:  # an OpenVINO before 2025.4 takes no tensor
            logger.warning("The cache %s cannot be used: this start compiles the model.", self._folder)
            return None
        except (OSError, ValueError, RuntimeError):  # numpy refuses what is empty, OpenVINO what is cut off
            logger.warning("The compiled model %s is damaged: this start compiles the model.", path)
            with suppress(OSError):
                path.unlink()
            return None
        self._mapped.append(content)
        mark_used(path)
        return compiled

    def keep(self, bytes_input: bool, compiled: openvino.CompiledModel) -> None:
        """Keep a compiled model for the next start; where that fails, a line in the log says so.

        Args:
            bytes_input: Whether it takes uint8 rather than float32.
            compiled: The compiled model.
        """
        path = self._path(bytes_input)
        part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        try:
            blob = compiled.export_model().getbuffer()
            with part.open("wb") as file:
                file.write(blob)
                file.write(hashlib.sha256(blob).digest())
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the name without the content
            part.replace(path)
            remove_unused(self._folder, _NAMES)  # earlier exports', and parts that killed processes left
        except (OSError, RuntimeError):  # a full disk, say, must not keep a detector from starting
            with suppress(OSError):
                part.unlink()
            logger.warning("The cache %s cannot be used: the next start compiles the model again.", self._folder)

    def _path(self, bytes_input: bool) -> Path:
        return self._folder / f"{self._key}-{'uint8' if bytes_input else 'float32'}.blob"


def can_keep(core: openvino.Core, device: str) -> bool:
    """Tell whether a device's compiled models can be written to files and read again; AUTO's cannot."""
    return "EXPORT_IMPORT" in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


def _is_whole(file: BinaryIO) -> bool:
    """Tell whether a file ends with the SHA-256 of all before; OpenVINO checks no weights.

    It is read in pieces rather than mapped: pages of a second mapping would count as memory once more.
    """
    left = file.seek(0, os.SEEK_END) - _DIGEST_LENGTH
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    return left == 0 and file.read() == digest.digest()
