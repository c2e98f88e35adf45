"""Where the images of ``predict`` come from: files, folders, videos and cameras."""

import re
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mixedteacher_edge.decoding import Named, pages, read_page
from mixedteacher_edge.errors import DataError

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
CAMERA = "camera:"
RETRIES = (1, 2, 4, 8, 15)
"""Seconds to wait before each attempt to reach a lost camera of the network again."""


def open_sources(sources: Sequence[str]) -> Iterator[Named]:
    """Open sources, all at once, so that a mistake shows before the first image is judged.

    Args:
        sources: Image files, folders that are searched with all below them, video files, ``camera:0`` for the first
            camera, and addresses such as ``rtsp://camera.local/stream``.

    Returns:
        Iterator over names and images: paths, the images of a folder being sorted, further pages of a TIFF file as
        ``scan.tif#2``; of a video or a camera, arrays of shape ``(H, W, 3)`` uint8 with names such as
        ``camera:0#000012``.

    Raises:
        DataError: If a source does not exist, cannot be opened, or is a folder without images.
    """
    return chain.from_iterable([_open(source) for source in sources])


def _open(source: str) -> Iterator[Named]:
    if source.startswith(CAMERA):
        number = source.removeprefix(CAMERA)
        if not number.isdecimal():
            msg = f"{source!r} is no camera: give its number, such as {CAMERA}0."
            raise DataError(msg)
        return _frames(source, int(number), live=True)
    if re.match("[a-z][a-z0-9+.-]*://", source):  # in a network
        return _frames(re.sub("//[^/]*@", "//", source), source, live=True, retries=RETRIES)
    path = Path(source)
    if path.is_dir():
        return chain.from_iterable(map(_pages, images_below(path)))
    if not path.exists():
        msg = f"There is no file or folder {path}: check the path."
        raise DataError(msg)
    return _frames(source, source) if path.suffix.lower() in VIDEOS else _pages(path)


def images_below(folder: Path) -> list[Path]:
    """List the images in a folder and all below it, sorted, one or more.

    Raises:
        DataError: If there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        msg = f"There are no images in {folder}: put images there, or give another folder."
        raise DataError(msg)
    return paths


def _pages(path: Path) -> Iterator[Named]:
    count = pages(path)
    yield str(path), path if count == 1 else read_page(path, 1)
    for number in range(2, count + 1):
        yield f"{path}#{number}", read_page(path, number)


def _frames(name: str, device: str | int, live: bool = False, retries: Sequence[int] = ()) -> Iterator[Named]:
    try:
        import cv2
    except ImportError as error:
        msg = "Videos and cameras need OpenCV: install opencv-python-headless, or give images."
        raise DataError(msg) from error
    capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        capture.release()
        remedy = "check its address or number, and that it is free" if live else "check that it is a video"
        msg = f"Cannot open {name}: {remedy}."
        raise DataError(msg)
    return _read(name, capture, device, live, retries)


def _read(name: str, capture: Any, device: str | int, live: bool, retries: Sequence[int]) -> Iterator[Named]:
    number = 0
    waits = list(retries)
    try:
        while True:
            ok, frame = capture.read()
            if ok:
                yield f"{name}#{number:06d}", frame[..., ::-1]  # OpenCV gives blue first
                number += 1
                waits = list(retries)
            elif waits:
                time.sleep(waits.pop(0))
                capture.open(device)
            elif live or not number:  # a video ends, a camera fails
                what = "gives no more frames" if number else "gives no frame"
                msg = f"{name} {what}: check the {'connection' if live else 'video'}."
                raise DataError(msg)
            else:
                return
    finally:
        capture.release()
