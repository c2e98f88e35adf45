"""Models of the package, one folder each, laid out as anomalib's own; each is imported when it is first used."""

from typing import TYPE_CHECKING, Any

import anomalib.models  # noqa: F401  (the start-up hook must run before our imports)

from anomalib_mixedteacher import plugin

if TYPE_CHECKING:
    from .mixed_teacher import MixedTeacher
    from .mkd import Mkd
    from .msfd import Msfd

__all__ = ["MixedTeacher", "Mkd", "Msfd"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return plugin.public(name)
