"""Keeps freed memory in the process while a model is trained on the CPU.

glibc maps large blocks anew for each layer's output and gives them back at once, and the system then clears page after
page: a quarter of a training step and more (docs/training-cost.md). With a larger threshold such blocks come from the
heap, where the next step finds them again.
"""

import ctypes
import os
import platform
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

# glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEEP = {_MMAP_THRESHOLD: 2**31 - 1, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**29}
# what glibc's own adaptation ends at in a process that frees large blocks
_USUAL = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}
_USERS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


class KeptHeap(Callback):
    """Keeps freed memory from the start of a training on the CPU to its end, then gives it back to the system.

    Does nothing where the C library is not glibc, or where the user has chosen an allocator or its settings by an
    environment variable.
    """

    def __init__(self) -> None:
        self._library: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep freed memory from here on."""
        del trainer
        if pl_module.device.type == "cpu" and platform.libc_ver()[0] == "glibc" and not set(_USERS) & os.environ.keys():
            self._library = ctypes.CDLL(None)
            _set(self._library, _KEEP)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the memory back."""
        del trainer, pl_module, stage
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the memory back where training ends in an exception: Lightning calls no :meth:`teardown` then."""
        del trainer, pl_module, exception
        self._give_back()

    def _give_back(self) -> None:
        if self._library is not None:
            _set(self._library, _USUAL)
            self._library.malloc_trim(0)
        self._library = None


def _set(library: Any, values: dict[int, int]) -> None:
    for name, value in values.items():
        library.mallopt(name, value)
