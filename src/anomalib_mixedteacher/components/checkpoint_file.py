"""Checkpoints that are on the disk as a whole or not at all."""

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO

from anomalib_mixedteacher.errors import CheckpointError


class WholeCheckpointIO(AnomalibCheckpointIO):
    """Writes a checkpoint beside its place and renames it when it has reached the disk.

    Lightning writes it to the system's temporary folder. Where that is another file system, the last step is a copy:
    a process killed then, or a full disk, leaves half a checkpoint in place of the one before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: What to save.
            path: Where; anything but a local path is left to Lightning.
            storage_options: Must be ``None``.

        Raises:
            CheckpointError: If it cannot be written; what was there before is still there then.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp")  # the same at each attempt: what a killed one left is reused
        content = io.BytesIO()  # torch's own writer turns a full disk into an error without a reason
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            msg = (
                f"The checkpoint cannot be written to {path.parent} ({error.strerror or error}): make room there, and "
                "go on from the last checkpoint with ckpt_path."
            )
            raise CheckpointError(msg) from error
