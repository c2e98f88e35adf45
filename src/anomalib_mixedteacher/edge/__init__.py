"""The edge runtime, a distribution of its own: see :mod:`mixedteacher_edge`."""

from mixedteacher_edge import (
    DriftMonitor,
    DriftReport,
    EdgeDetector,
    LineBlock,
    LineScan,
    ModelRecord,
    Prediction,
    StreamItem,
    Thresholds,
)

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
