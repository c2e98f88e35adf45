"""Pre-training of the texture teachers, on generated textures alone.

Needs torch, torchvision, timm and safetensors; anomalib is not imported. ``python -m anomalib_mixedteacher.pretraining
--help`` shows the command that made the shipped weights.
"""
