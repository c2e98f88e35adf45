"""Where the package keeps what it can make again."""

import os
from pathlib import Path

from anomalib_mixedteacher.errors import DataError

CACHE_VARIABLE = "ANOMALIB_MIXEDTEACHER_CACHE"


def cache_folder(kind: str) -> Path:
    """Find the folder of one kind of things.

    Args:
        kind: Name of the folder.

    Returns:
        ``kind`` in the folder named by the environment variable ``ANOMALIB_MIXEDTEACHER_CACHE``, else in
        ``anomalib_mixedteacher`` below ``XDG_CACHE_HOME`` or ``~/.cache``. It need not exist.

    Raises:
        DataError: If there is no home directory, and no variable that names another folder.
    """
    own, base = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser() / kind
        return (Path(base) if base else Path.home() / ".cache") / "anomalib_mixedteacher" / kind
    except RuntimeError as error:
        msg = f"There is no home directory for the folder {kind}: name another place by {CACHE_VARIABLE}."
        raise DataError(msg) from error
