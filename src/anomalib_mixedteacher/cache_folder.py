"""Where, and for how long, the package keeps what it can make again."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from anomalib_mixedteacher.errors import CacheError

CACHE_VARIABLE = "ANOMALIB_MIXEDTEACHER_CACHE"
UNUSED_DAYS = 30


def cache_folder(kind: str) -> Path:
    """Find the folder of one kind of things.

    Args:
        kind: Name of the folder.

    Returns:
        ``kind`` in the folder named by the environment variable ``ANOMALIB_MIXEDTEACHER_CACHE``, else in
        ``anomalib_mixedteacher`` below ``XDG_CACHE_HOME`` or ``~/.cache``. It need not exist.

    Raises:
        CacheError: If there is no home directory, and no variable that names another folder.
    """
    own, base = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser() / kind
        return (Path(base) if base else Path.home() / ".cache") / "anomalib_mixedteacher" / kind
    except RuntimeError as error:
        msg = f"There is no home directory for the folder {kind}: name another place by {CACHE_VARIABLE}."
        raise CacheError(msg) from error


def mark_used(*paths: Path) -> None:
    """Let files count as used today, where they may be changed."""
    for path in paths:
        with suppress(OSError):
            os.utime(path)


def remove_unused(folder: Path, names: re.Pattern[str]) -> None:
    """Remove files that were neither written nor marked as used for ``UNUSED_DAYS`` days, where they may be removed.

    A changed setting or a new export leaves files behind that nothing asks for any more.

    Args:
        folder: Folder of the files; it need not exist.
        names: What the files' whole names look like. The user may keep files of his own beside them.
    """
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in folder.glob("*"):
        with suppress(OSError):  # another user's, open on Windows, or just removed by another process
            if names.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()
