"""The teachers that ship with the package: trained by this project, on textures that this project generates.

A folder holds one ``.safetensors`` file a backbone and ``manifest.json``, which names each file's SHA-256 and what made
it. A shipped file whose checksum differs is not loaded.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from anomalib_mixedteacher.errors import WeightsError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDER = Path(__file__).resolve().parents[1] / "texture_teachers"
MANIFEST = "manifest.json"


def read_manifest(folder: Path = FOLDER) -> dict[str, Any]:
    """Read what a folder of texture teachers says about itself.

    Args:
        folder: The package's own by default.

    Returns:
        One entry a backbone, with its ``file``, ``sha256``, ``layers`` and the recipe that made it.

    Raises:
        WeightsError: If the manifest is missing or damaged.
    """
    try:
        return dict(json.loads((folder / MANIFEST).read_text())["teachers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"The texture teachers' {MANIFEST} is missing or damaged: install anomalib-mixedteacher again."
        raise WeightsError(msg) from error


def has_texture_teacher(backbone: str, net: nn.Module) -> bool:
    """Tell whether the package has a texture teacher for a network, as deep as it is."""
    layers = read_manifest().get(backbone, {}).get("layers", [])
    return max(net.feature_info.out_indices) <= max(layers, default=-1)  # type: ignore[union-attr, arg-type]


def load_texture_teacher(backbone: str, net: nn.Module, folder: Path = FOLDER) -> tuple[str, dict[str, torch.Tensor]]:
    """Load a texture teacher and verify its checksum.

    Args:
        backbone: timm architecture name.
        net: The network that the weights are for.
        folder: The package's own by default.

    Returns:
        Where they come from, and the state dict in timm's naming.

    Raises:
        WeightsError: If there is none for the backbone or its layers, or if the file is not the one of the manifest.
    """
    manifest = read_manifest(folder)
    if backbone not in manifest:
        msg = (
            f"There is no texture teacher for {backbone}, only for {', '.join(manifest)}: use "
            "teacher_weights='imagenet', or a path to weights."
        )
        raise WeightsError(msg)
    entry = manifest[backbone]
    deepest, asked = max(entry["layers"]), max(net.feature_info.out_indices)  # type: ignore[union-attr, arg-type]
    if asked > deepest:
        msg = (
            f"The texture teacher of {backbone} ends at layer {deepest}, but layer {asked} is asked for: use layers up "
            "to that one, teacher_weights='imagenet', or a path to weights."
        )
        raise WeightsError(msg)
    path = folder / entry["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"The texture teacher {path} cannot be read: install anomalib-mixedteacher again."
        raise WeightsError(msg) from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        msg = f"The texture teacher {path} was changed (its SHA-256 differs): install anomalib-mixedteacher again."
        raise WeightsError(msg)
    return f"texture, version {entry['version']}", load(content)


def write_texture_teachers(
    folder: Path, weights: Mapping[str, Mapping[str, torch.Tensor]], about: Mapping[str, Any]
) -> None:
    """Write teachers and their manifest; entries of other backbones stay.

    Convolutions are stored in float16; the statistics of batch normalisation, a hundredth of the numbers, in float32,
    since small variances would lose most of their digits.

    Args:
        folder: Made if it does not exist.
        weights: State dict of each backbone, in timm's naming.
        about: Entry of each backbone: ``version``, ``layers``, and whatever tells how the weights were made.

    Raises:
        WeightsError: If a weight is not finite as it is stored, if the manifest is damaged, or if a file cannot be
            written.
    """
    files = {f"{backbone}.safetensors": _stored(backbone, state) for backbone, state in weights.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            entries = read_manifest(folder) if (folder / MANIFEST).exists() else {}
            for backbone, (name, stored) in zip(weights, files.items(), strict=True):
                content = save(stored)
                write_whole(folder / name, content)
                entries[backbone] = {
                    "file": name,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "bytes": len(content),
                    "parameters": sum(value.numel() for key, value in stored.items() if "running_" not in key),
                    **about[backbone],
                }
            write_whole(folder / MANIFEST, (json.dumps({"teachers": entries}, indent=2) + "\n").encode())
    except OSError as error:
        msg = f"The weights cannot be written to {folder} ({error.strerror or error}): make room there, and try again."
        raise WeightsError(msg) from error


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside its place and rename it when it has reached the disk.

    Args:
        path: The file.
        content: What to write.

    Raises:
        OSError: If it cannot be written; what was there before is still there then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # another process may write the same file
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _stored(backbone: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors of a state dict as they are stored."""
    kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    stored = {key: value.half() if value.ndim > 1 else value for key, value in kept.items()}
    for key, value in stored.items():
        if not value.isfinite().all():
            msg = (
                f"The weights of {backbone} are not written, {key!r} is not finite in float16: train them again with "
                "a lower learning rate."
            )
            raise WeightsError(msg)
    return stored


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process writes a folder's manifest, and keep others out until this is left."""
    with (folder / ".lock").open("w") as file:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
