"""MixedTeacher (Thomine, Snoussi, Soua, VISAPP 2023, arXiv 2306.09859).

Two frozen teachers, ResNet-18 and EfficientNet-b0, are distilled into two students on good images only; where a
student fails to follow its teacher, the image is anomalous.
"""

from .lightning_model import MixedTeacher

__all__ = ["MixedTeacher"]
