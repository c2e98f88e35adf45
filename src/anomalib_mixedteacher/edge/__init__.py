"""Inference beside the camera: numpy, openvino and Pillow, neither torch nor anomalib."""

from .detector import EdgeDetector, Prediction
from .drift import DriftMonitor, DriftReport
from .record import ModelRecord

__all__ = ["DriftMonitor", "DriftReport", "EdgeDetector", "ModelRecord", "Prediction"]
