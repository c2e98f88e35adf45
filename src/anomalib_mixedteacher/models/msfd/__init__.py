"""MSFD: multi-scale feature distillation (Yao, Li, Zhang, Huang, Sun, M2VIP 2021).

A frozen ResNet is distilled into a student of the same architecture on several levels, by a distance that has a
Euclidean and a cosine part; the levels' maps are brought to the image by a Gaussian over the receptive field.
"""

from .lightning_model import Msfd

__all__ = ["Msfd"]
