"""Reading 16-bit images, which anomalib 2.7 turns white."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data.utils import image as anomalib_image
from PIL import Image

_anomalib_read_image = anomalib_image.read_image


def read_image(path: str | Path, as_tensor: bool = False) -> Any:
    """Read an image as anomalib's ``read_image`` does, and 16-bit grey ones over their whole range.

    anomalib converts with Pillow's ``convert("RGB")``, which clips 16-bit values at 255: a 16-bit photo becomes white
    without a word. Here they are divided by 65535.

    Args:
        path: Image file.
        as_tensor: Return a tensor rather than an array.

    Returns:
        float32 tensor of shape ``(3, H, W)``, or float64 array of shape ``(H, W, 3)``, both in ``[0, 1]``.
    """
    with Image.open(path) as image:
        if not image.mode.startswith("I;16"):
            return _anomalib_read_image(path, as_tensor=as_tensor)
        grey = np.asarray(image).astype(np.float64) / np.iinfo(np.uint16).max
    if as_tensor:
        return torch.from_numpy(grey).float().expand(3, -1, -1).contiguous()
    return np.repeat(grey[..., None], 3, axis=-1)
