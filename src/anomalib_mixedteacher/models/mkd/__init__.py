"""MKD: multiresolution knowledge distillation (Salehi et al., CVPR 2021, arXiv 2011.11108).

A frozen VGG-16, the expert, is distilled into a cloner on good images only, in value and in direction. The score is
what the cloner lacks; the heat map is the gradient of that score with respect to the image.
"""

from .lightning_model import Mkd

__all__ = ["Mkd"]
