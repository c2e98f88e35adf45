"""MixedTeacher (Thomine, Snoussi, Soua, VISAPP 2023, arXiv 2306.09859)."""

from .lightning_model import MixedTeacher

__all__ = ["MixedTeacher"]
