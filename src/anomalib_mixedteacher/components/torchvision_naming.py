"""torchvision's parameter names of EfficientNet, translated into timm's. ResNets share their names."""

import re
from collections.abc import Mapping

import torch

# Inside a block: position of the layer in torchvision's ``block`` -> name in timm. The first stage does not expand.
_WITHOUT_EXPANSION = {"0.0": "conv_dw", "0.1": "bn1", "1.fc1": "se.conv_reduce", "1.fc2": "se.conv_expand"}
_WITHOUT_EXPANSION |= {"2.0": "conv_pw", "2.1": "bn2"}
_WITH_EXPANSION = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"}
_WITH_EXPANSION |= {"2.fc1": "se.conv_reduce", "2.fc2": "se.conv_expand", "3.0": "conv_pwl", "3.1": "bn3"}
_OUTSIDE = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.8.0": "conv_head",
    "features.8.1": "bn2",
    "classifier.1": "classifier",
}
_BLOCK = re.compile(r"features\.([1-7])\.(\d+)\.block\.(\d\.\w+)\.(\w+)")


def is_torchvision_naming(state: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether a state dict is a torchvision EfficientNet's."""
    return "features.0.0.weight" in state and "features.1.0.block.0.0.weight" in state


def from_torchvision(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a torchvision EfficientNet's parameters; names it does not know are kept."""
    return {_rename(key): value for key, value in state.items()}


def _rename(key: str) -> str:
    if match := _BLOCK.fullmatch(key):
        stage, block, layer, parameter = match.groups()
        names = _WITHOUT_EXPANSION if stage == "1" else _WITH_EXPANSION
        if layer in names:
            return f"blocks.{int(stage) - 1}.{block}.{names[layer]}.{parameter}"
        return key
    layer, _, parameter = key.rpartition(".")
    return f"{_OUTSIDE[layer]}.{parameter}" if layer in _OUTSIDE else key
