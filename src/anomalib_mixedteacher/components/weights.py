"""Where teacher weights come from: pretrained names, files, folders.

Every source gives a state dict in timm's naming. Loading is strict: one key that is missing, unknown or of
another shape is an error that names the file and the key.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor, initialize_weights
from anomalib_mixedteacher.components.texture_weights import has_texture_teacher, load_texture_teacher
from anomalib_mixedteacher.components.torchvision_naming import from_torchvision, is_torchvision_naming
from anomalib_mixedteacher.errors import WeightsError

logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

# The method's results were made with these. timm's default tags differ (resnet18 is a1_in1k today) and cost accuracy.
IMAGENET_TAGS = {
    "resnet18": "resnet18.tv_in1k",
    "efficientnet_b0": "efficientnet_b0.ra_in1k",
    "vgg16": "vgg16.tv_in1k",
    "wide_resnet50_2": "wide_resnet50_2.tv_in1k",
}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
RANDOM_SEED = 0


def load_teacher_weights(backbone: str, source: str, net: nn.Module) -> StateDict:
    """Load the weights of one backbone.

    Args:
        backbone: timm architecture name.
        source: A name in :data:`SOURCES`, a ``.safetensors`` / ``.pth`` file, or a folder that holds
            ``<backbone>.safetensors`` or ``<backbone>.pth`` for every backbone; ``~`` is the home directory.
        net: The network that the weights are for; tells which keys are needed.

    Returns:
        State dict with the keys and shapes of ``net``, float32.

    Raises:
        WeightsError: If the weights cannot be found, read or matched; the message names the file and the key.
    """
    if source in SOURCES:
        origin, state = SOURCES[source](backbone, net)
    elif (path := Path(os.path.expanduser(source))).exists():  # noqa: PTH111 - pathlib's raises without a home
        origin, state = _from_path(backbone, path)
    else:
        msg = (
            f"teacher_weights={source!r} is neither one of {', '.join(SOURCES)} nor an existing file or folder; "
            "check the spelling or the path."
        )
        raise WeightsError(msg)
    matched = _match(backbone, state, net, origin)
    logger.info("Teacher %s: weights from %s, fingerprint %s", backbone, origin, fingerprint(matched)[:12])
    return matched


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """Compute the SHA-256 of a state dict's names and values, as a hexadecimal string."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _imagenet(backbone: str, net: nn.Module) -> tuple[str, StateDict]:
    tag = IMAGENET_TAGS.get(backbone, backbone)
    try:
        state = timm.create_model(tag, pretrained=True).state_dict()
    except Exception as error:
        # Offline, the hub's client raises one of several libraries' exceptions, depending on the kind of failure.
        msg = (
            f"ImageNet weights of {tag} are neither in the cache nor reachable ({type(error).__name__}): connect once "
            "to fill the Hugging Face cache, or copy the cache from a connected machine (HF_HOME), or give "
            "teacher_weights a path to downloaded files"
        )
        texture = ", or use teacher_weights='texture', which needs no network"
        msg += f"{texture if has_texture_teacher(backbone, net) else ''}."
        raise WeightsError(msg) from error
    return f"timm {tag}", state


def _random(backbone: str, net: nn.Module) -> tuple[str, StateDict]:
    logger.warning(
        "Teacher %s has random weights (seed %d): fit for tests and ablations, not for detection.",
        backbone,
        RANDOM_SEED,
    )
    with torch.device("cpu"):
        twin = FeatureExtractor(backbone, net.feature_info.out_indices).net  # type: ignore[union-attr, arg-type]
    initialize_weights(twin, torch.Generator().manual_seed(RANDOM_SEED))
    return f"random, seed {RANDOM_SEED}", twin.state_dict()


SOURCES: dict[str, Callable[[str, nn.Module], tuple[str, StateDict]]] = {
    "imagenet": _imagenet,
    "texture": load_texture_teacher,
    "random": _random,
}


def _from_path(backbone: str, path: Path) -> tuple[str, StateDict]:
    if path.is_dir():
        candidates = [path / f"{backbone}{suffix}" for suffix in SUFFIXES]
        found = next((candidate for candidate in candidates if candidate.exists()), None)
        if found is None:
            msg = f"The weights folder {path} has no {backbone}.safetensors or {backbone}.pth; put one there."
            raise WeightsError(msg)
        path = found
    state = _read(path)
    # One file may hold several backbones, each behind its name as prefix.
    prefix = f"{backbone}."
    prefixed = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return str(path), prefixed or state


def _read(path: Path) -> StateDict:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        msg = f"The weights file {path} cannot be read ({error}): it is truncated or of another format; copy it again."
        raise WeightsError(msg) from error
    except Exception as error:  # pickle's own errors have no common base
        if not zipfile.is_zipfile(path):
            msg = f"The weights file {path} is no PyTorch file, or a truncated one: copy it again."
        else:
            msg = f"The weights file {path} holds more than tensors: save the plain state_dict instead."
        raise WeightsError(msg) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        msg = f"The weights file {path} does not hold a state_dict: save model.state_dict()."
        raise WeightsError(msg)
    return dict(state)


def _match(backbone: str, state: StateDict, net: nn.Module, origin: str) -> StateDict:
    if is_torchvision_naming(state):
        state = from_torchvision(state)
    needed = net.state_dict()
    is_vgg = "features.0.weight" in needed
    if is_vgg:
        # torchvision's head, which timm names otherwise; the layers share their names
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    with torch.device("meta"):
        # Layers behind the last one in use, head included: present in published files, and left aside.
        unused = timm.create_model(backbone).state_dict().keys() - needed.keys()
    # A counter that no layer with a fixed momentum reads; older files do not have it.
    optional = {key for key in needed if key.endswith("num_batches_tracked")}
    for key in sorted(state.keys() - needed.keys() - unused):
        if is_vgg and key.startswith("features."):  # a VGG names its layers by their position
            msg = (
                f"{origin} does not fit {backbone}: with {key!r} it is for another network, of another depth or with "
                f"batch normalisation; give the weights of a {backbone}."
            )
            raise WeightsError(msg)
        msg = f"{origin} does not fit {backbone}: unknown key {key!r}; give the weights of a {backbone}."
        raise WeightsError(msg)
    matched = {}
    for key, reference in needed.items():
        value = state.get(key)
        if value is None:
            if key in optional:
                matched[key] = torch.zeros_like(reference)
                continue
            msg = f"{origin} does not fit {backbone}: key {key!r} is missing; give the weights of a {backbone}."
            raise WeightsError(msg)
        if value.shape != reference.shape:
            msg = (
                f"{origin} does not fit {backbone}: {key!r} has shape {tuple(value.shape)} instead of "
                f"{tuple(reference.shape)}; give the weights of a {backbone}."
            )
            raise WeightsError(msg)
        matched[key] = value.to(reference.dtype)
        if not matched[key].isfinite().all():
            msg = f"{origin} has NaN or infinity in {key!r}: copy it again, or give weights that are finite."
            raise WeightsError(msg)
    return matched
