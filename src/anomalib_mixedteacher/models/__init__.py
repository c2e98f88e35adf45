"""Models of the package, one folder each, laid out as anomalib's own."""

import anomalib.models  # noqa: F401  (the start-up hook must run before our imports)

from .mixed_teacher import MixedTeacher
from .mkd import Mkd
from .msfd import Msfd

__all__ = ["MixedTeacher", "Mkd", "Msfd"]
