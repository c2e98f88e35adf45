"""MSFD: multi-scale feature distillation (Yao, Li, Zhang, Huang, Sun, M2VIP 2021)."""

from .lightning_model import Msfd

__all__ = ["Msfd"]
