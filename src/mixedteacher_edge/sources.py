"""Where the images of ``mixedteacher predict`` come from: files, folders, videos and cameras."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from mixedteacher_edge.decoding import ImageSource
from mixedteacher_edge.errors import DataError

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
CAMERA = "camera:"

Named: TypeAlias = tuple[str, ImageSource]


def open_sources(sources: Sequence[str]) -> Iterator[Named]:
    """Open sources, all at once, so that a mistake shows before the first image is judged.

    Args:
        sources: Image files, folders that are searched with all below them, video files, and ``camera:0`` for the
            first camera.

    Returns:
        Iterator over names and images: paths, the images of a folder being sorted; of a video or a camera, arrays of
        shape ``(H, W, 3)`` uint8 with names such as ``camera:0#000012``.

    Raises:
        DataError: If a source does not exist, cannot be opened, or is a folder without images.
    """
    return chain.from_iterable([_open(source) for source in sources])


def _open(source: str) -> Iterator[Named]:
    if source.startswith(CAMERA):
        return _camera(source)
    path = Path(source)
    if path.is_dir():
        return ((str(image), image) for image in images_below(path))
    if not path.exists():
        msg = f"There is no file or folder {path}: check the path."
        raise DataError(msg)
    return _frames(source, source) if path.suffix.lower() in VIDEOS else iter([(str(path), path)])


def images_below(folder: Path) -> list[Path]:
    """List the images in a folder and all below it, sorted.

    Args:
        folder: The folder.

    Returns:
        Their paths, one or more.

    Raises:
        DataError: If there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        msg = f"There are no images in {folder}: put images there, or give another folder."
        raise DataError(msg)
    return paths


def _camera(source: str) -> Iterator[Named]:
    number = source.removeprefix(CAMERA)
    if not number.isdecimal():
        msg = f"{source!r} is no camera: give its number, such as {CAMERA}0."
        raise DataError(msg)
    return _frames(source, int(number))


def _frames(source: str, device: str | int) -> Iterator[Named]:
    try:
        import cv2
    except ImportError as error:
        msg = "Videos and cameras need OpenCV: install opencv-python-headless, or give images."
        raise DataError(msg) from error
    capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        capture.release()
        remedy = "check that it is a video" if isinstance(device, str) else "check its number and that it is free"
        msg = f"Cannot open {source}: {remedy}."
        raise DataError(msg)
    return _read(source, capture.read, capture.release)


def _read(source: str, read: Callable[[], tuple[bool, Any]], release: Callable[[], None]) -> Iterator[Named]:
    try:
        number = 0
        while True:
            ok, frame = read()
            if not ok and not number:
                msg = f"No frame can be read from {source}: check the video, or the camera's connection."
                raise DataError(msg)
            if not ok and source.startswith(CAMERA):  # a video ends, a camera fails
                msg = f"{source} gives no more frames: check its connection."
                raise DataError(msg)
            if not ok:
                return
            yield f"{source}#{number:06d}", frame[..., ::-1]  # OpenCV gives blue first
            number += 1
    finally:
        release()
