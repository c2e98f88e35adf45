"""Inference beside the camera: numpy, OpenVINO and Pillow, neither torch nor anomalib.

Public names are resolved when they are first used: training needs the mathematics alone, and not OpenVINO.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if TYPE_CHECKING:
    from .detector import EdgeDetector, Prediction, StreamItem
    from .drift import DriftMonitor, DriftReport
    from .line_scan import LineBlock, LineScan
    from .record import ModelRecord
    from .thresholds import Thresholds

__all__ = [
    "DriftMonitor",
    "DriftReport",
    "EdgeDetector",
    "LineBlock",
    "LineScan",
    "ModelRecord",
    "Prediction",
    "StreamItem",
    "Thresholds",
]

_MODULES = {"DriftMonitor": "drift", "DriftReport": "drift", "ModelRecord": "record", "Thresholds": "thresholds"}
_MODULES |= {"LineBlock": "line_scan", "LineScan": "line_scan"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'detector')}"), name)
