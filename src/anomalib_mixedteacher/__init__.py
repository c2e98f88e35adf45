"""MixedTeacher and its relatives as first-class anomalib models.

Importing this package imports neither torch nor anomalib: public names are resolved when they are first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if TYPE_CHECKING:
    from anomalib_mixedteacher.data import Elpv, MagneticTile, OneClass, SyntheticTextures
    from anomalib_mixedteacher.models import MixedTeacher, Mkd, Msfd
    from anomalib_mixedteacher.post_processing import NormalCalibratedPostProcessor

__all__ = [
    "Elpv",
    "MagneticTile",
    "MixedTeacher",
    "Mkd",
    "Msfd",
    "NormalCalibratedPostProcessor",
    "OneClass",
    "SyntheticTextures",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from anomalib_mixedteacher import plugin

    plugin.register()  # also where the start-up file is switched off or missing
    return plugin.public(name)


def __dir__() -> list[str]:
    return sorted(__all__)
