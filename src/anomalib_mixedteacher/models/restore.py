"""Reading a checkpoint without knowing which of the package's models it holds."""

import pickle
from pathlib import Path
from typing import Any, cast

import torch
from anomalib.models import AnomalibModule

from anomalib_mixedteacher import plugin
from anomalib_mixedteacher.errors import ConfigurationError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the checkpoint of one of the package's models.

    Args:
        path: A checkpoint that anomalib's Engine wrote.

    Returns:
        Its content.

    Raises:
        ConfigurationError: If there is none, it is damaged, or it is another package's model.
    """
    if not path.is_file():
        msg = f"There is no checkpoint {path}: give the .ckpt file that training wrote."
        raise ConfigurationError(msg)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        msg = f"{path} is no checkpoint of anomalib's, or a damaged one: give the .ckpt file that training wrote."
        raise ConfigurationError(msg) from error
    if not isinstance(content, dict) or content.get("anomalib_mixedteacher", {}).get("model") not in plugin.MODELS:
        msg = f"{path} is not a checkpoint of {', '.join(plugin.MODELS)}: give one that such a model trained."
        raise ConfigurationError(msg)
    return content


def load_model(path: Path) -> AnomalibModule:
    """Restore the model of a checkpoint on the CPU.

    Args:
        path: A checkpoint that anomalib's Engine wrote.

    Returns:
        The model.

    Raises:
        ConfigurationError: If there is none, it is damaged, or it is another package's model.
    """
    model_class: Any = plugin.public(read_checkpoint(path)["anomalib_mixedteacher"]["model"])
    return cast("AnomalibModule", model_class.load_from_checkpoint(path, map_location="cpu"))
