"""Models of the package, one folder each, laid out as anomalib's own."""

from .mixed_teacher import MixedTeacher
from .mkd import Mkd
from .msfd import Msfd

__all__ = ["MixedTeacher", "Mkd", "Msfd"]
