"""Where the package keeps what it can make again."""

import os
from pathlib import Path

CACHE_VARIABLE = "ANOMALIB_MIXEDTEACHER_CACHE"


def cache_folder(kind: str) -> Path:
    """Find the folder of one kind of things.

    Args:
        kind: Name of the folder.

    Returns:
        ``kind`` in the folder named by the environment variable ``ANOMALIB_MIXEDTEACHER_CACHE``, else in
        ``anomalib_mixedteacher`` below ``XDG_CACHE_HOME`` or ``~/.cache``. It need not exist.
    """
    own = os.environ.get(CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(base) / "anomalib_mixedteacher") / kind
