"""Hidden folders in which data sets are written until they are whole, and what killed processes left of them."""

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.[\w-]+-\d+-[0-9a-f]{8}")
_DAY = 24 * 3600


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder beside a final one, to be renamed when it is complete.

    Args:
        target (Path): The final folder.

    Yields:
        Path: The hidden folder; removed at the end unless it was renamed.

    Raises:
        OSError: If it cannot be made.
    """
    work = target.with_name(f".{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        work.mkdir(parents=True)
        with _locked(work):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden folders of killed processes: those without a change for a day that no process has locked.

    Args:
        folder (Path): Where the final folders are; it need not exist.
    """
    oldest = time.time() - _DAY
    for path in folder.glob(".*"):
        if _NAME.fullmatch(path.name) is None:
            continue
        with suppress(OSError):  # a live process's, another user's, or just removed by another process
            if max(part.stat().st_mtime for part in (path, *path.rglob("*"))) < oldest:
                with _locked(path, or_fail=True):
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path, or_fail: bool = False) -> Iterator[None]:
    """Lock a folder where its file system can do that; the lock ends with the process, however that ends."""
    if fcntl is None:  # and where an open folder could not be renamed
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if or_fail:
                raise
        except OSError:  # a file system without locks: the age alone decides
            pass
        yield
    finally:
        os.close(handle)
