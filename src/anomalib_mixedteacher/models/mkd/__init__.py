"""MKD: multiresolution knowledge distillation (Salehi et al., CVPR 2021, arXiv 2011.11108)."""

from .lightning_model import Mkd

__all__ = ["Mkd"]
