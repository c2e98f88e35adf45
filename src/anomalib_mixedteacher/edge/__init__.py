"""Inference beside the camera: numpy, openvino and Pillow, neither torch nor anomalib."""

from .detector import EdgeDetector, Prediction
from .record import ModelRecord

__all__ = ["EdgeDetector", "ModelRecord", "Prediction"]
