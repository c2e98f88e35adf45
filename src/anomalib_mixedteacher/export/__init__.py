"""Lean OpenVINO models: one graph from the image's pixels to the verdict, in FP32, FP16 or INT8."""
