"""The teachers that ship with the package: trained by this project, on textures that this project generates.

A folder holds one ``.safetensors`` file a backbone and ``manifest.json``, which names each file's SHA-256 and what made
it. A shipped file whose checksum differs is not loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from anomalib_mixedteacher.errors import WeightsError

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
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    for backbone, state in weights.items():
        kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        content = save({key: value.half() if value.ndim > 1 else value for key, value in kept.items()})
        name = f"{backbone}.safetensors"
        _replace(folder / name, content)
        entries[backbone] = {
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "parameters": sum(value.numel() for key, value in kept.items() if "running_" not in key),
            **about[backbone],
        }
    _replace(folder / MANIFEST, (json.dumps({"teachers": entries}, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
