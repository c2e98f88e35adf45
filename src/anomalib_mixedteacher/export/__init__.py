"""Lean OpenVINO models: one graph from the image's pixels to the verdict, in FP32, FP16 or INT8."""

MAX_DROP = 0.002
"""Loss of AUROC from which a quantised model is not written, unless told otherwise."""
