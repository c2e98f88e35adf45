"""The command ``predict MODEL.xml SOURCES...``: judge images with an exported model."""

import argparse
import csv
import io
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from mixedteacher_edge.decoding import ImageSource
from mixedteacher_edge.detector import HINTS, PRECISIONS, EdgeDetector, Named, StreamItem
from mixedteacher_edge.drift import DriftMonitor
from mixedteacher_edge.errors import DataError
from mixedteacher_edge.overlay import OverlayFolder
from mixedteacher_edge.sources import open_sources

FIELDS = ("name", "score", "label", "p_value", "overlay", "error")
DEFECT_STATUS = 3
EPILOG = """Each result has a name, a score with the model's threshold at 0.5, a label (true for a defect), a p-value
if the model was calibrated on good images, the file of its heat map if --overlays is given, and an error if the image
cannot be read. Exit status: 0; 1 after an error or an unreadable image or a missing heat map; 3 with --fail-on-defect
if there was a defect."""


@dataclass
class Tally:
    """Counts of a run, and its clock."""

    images: int = 0
    defects: int = 0
    unreadable: int = 0
    not_drawn: int = 0
    _first: float = 0.0
    _last: float = 0.0

    def add(self, item: StreamItem) -> None:
        """Count one image."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self.images += 1
        self.defects += item.prediction is not None and item.prediction.label
        self.unreadable += item.prediction is None

    def text(self) -> str:
        """Write the counts, and the rate from the second image on: the first one waits for the model to be compiled."""
        seconds = self._last - self._first
        rated = self.images - self.unreadable > 1 and seconds > 0
        rate = f", {(self.images - 1) / seconds:.1f} images a second" if rated else ""
        lost = f", {self.not_drawn} overlays missing" if self.not_drawn else ""
        return f"{self.images} images, {self.defects} defects, {self.unreadable} unreadable{lost}{rate}"


def main(args: Sequence[str]) -> int:
    """Run the command; see its epilog for the exit status.

    Raises:
        MixedTeacherError: If the user has to mend something.
    """
    given = vars(_parser().parse_args(args))
    sources, hint, no_cache = given.pop("sources"), given.pop("hint"), given.pop("no_cache")
    output, form, overlays, drift = (given.pop(name) for name in ("output", "format", "overlays", "drift"))
    limit, fail_on_defect = given.pop("limit"), given.pop("fail_on_defect")
    images = islice(open_sources(sources), limit)
    detector = EdgeDetector(**given | {"performance_hint": hint.upper()} | ({"cache": None} if no_cache else {}))
    folder = OverlayFolder(overlays, sources) if overlays else None
    monitor = DriftMonitor.of(detector.record, state=drift) if drift else None
    tally = Tally()
    with _sigterm_as_interrupt(), _opened(output) as file:
        _judge(detector, images, _checked(WRITERS[form](file), file), folder, monitor, tally)
    print(tally.text(), file=sys.stderr)
    if fail_on_defect and tally.defects:
        return DEFECT_STATUS
    return 1 if tally.unreadable or tally.not_drawn else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).stem} predict", description="Judge images with an exported model.", epilog=EPILOG
    )
    add = parser.add_argument
    add("model", type=Path, help="the exported model's .xml or .onnx file")
    add("sources", nargs="+", help="image files, folders of images, videos, camera:0 or rtsp://... for cameras")
    add("--format", choices=WRITERS, default="jsonl", help="form of the results; default: jsonl")
    add("--output", type=Path, help="file for the results; default: standard output")
    add("--overlays", type=Path, metavar="DIR", help="folder for heat maps over the images")
    add("--fail-on-defect", action="store_true", help="exit with status 3 if there is a defect")
    add("--threshold", type=float, help="score from which on an image is a defect, 0 to 1; default: 0.5, the model's")
    add("--device", default="CPU", help="OpenVINO's device, such as CPU, GPU or AUTO; default: CPU")
    hints = [hint.lower() for hint in HINTS]
    add("--hint", choices=hints, default=hints[0], help="what to optimise for; default: latency")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument("--cache", metavar="DIR", default="auto", help="folder for compiled models; default: beside it")
    cache.add_argument("--no-cache", action="store_true", help="keep no compiled model")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="f32, or auto for the device's own")
    add("--bits", type=_count, metavar="N", help="bits that a camera uses of 16; default: the model's")
    add("--max-pixels", type=_count, metavar="N", help="most pixels of an image file; default: 500 million")
    add("--drift", type=Path, metavar="STATE", help="watch passed images for change; the file keeps the window")
    add("--limit", type=_count, metavar="N", help="stop after N images")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        msg = f"{text!r} is no number: give 1 or more."
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _judge(
    detector: EdgeDetector,
    images: Iterable[Named],
    write: Callable[[dict[str, Any]], None],
    overlays: OverlayFolder | None,
    monitor: DriftMonitor | None,
    tally: Tally,
) -> None:
    """Write a row for each image, until the images end, the user interrupts, or nobody reads the rows any more."""
    pending: deque[ImageSource] = deque()  # images whose results are still to come, for their overlays

    def remembered() -> Iterator[Named]:
        for name, image in images:
            pending.append(image)
            yield name, image

    progress = sys.stderr.isatty()
    try:
        for item in detector.stream(remembered()):
            image = pending.popleft()
            row: dict[str, Any] = dict.fromkeys(FIELDS) | {"name": item.name, "error": item.error}
            if prediction := item.prediction:
                row |= {"score": prediction.score, "label": prediction.label, "p_value": prediction.p_value}
                try:
                    if overlays:
                        row["overlay"] = str(overlays.write(item.name, detector.read(image, item.name), prediction))
                except DataError as error:  # the results count more
                    tally.not_drawn += 1
                    print(error, file=sys.stderr)
            write(row)
            tally.add(item)
            report = monitor.add(prediction) if monitor and prediction else None
            if report and report.drifted:
                print(report.text(), file=sys.stderr)
            if progress:
                print(f"\r{tally.images} images, {tally.defects} defects", end="", file=sys.stderr, flush=True)
    except (KeyboardInterrupt, BrokenPipeError):  # the usual end of a camera's run, and of "| head": what is done stays
        pass
    if progress:
        print("\r", end="", file=sys.stderr)


def _jsonl(file: TextIO) -> Callable[[dict[str, Any]], None]:
    return lambda row: print(json.dumps(row), file=file, flush=True)


def _csv(file: TextIO) -> Callable[[dict[str, Any]], None]:
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()

    def write(row: dict[str, Any]) -> None:
        label = row["label"]
        writer.writerow(row | {"label": None if label is None else str(label).lower()})  # as in JSON
        file.flush()

    return write


WRITERS = {"jsonl": _jsonl, "csv": _csv}


def _checked(write: Callable[[dict[str, Any]], None], file: TextIO) -> Callable[[dict[str, Any]], None]:
    """Let rows that cannot be written end the run in one sentence, and those that nobody reads in none."""

    def checked(row: dict[str, Any]) -> None:
        try:
            write(row)
        except OSError as error:
            # what is left in the buffer would fail once more when it is flushed at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                raise
            msg = f"Cannot write the results ({error.strerror}): free space there, or give another file with --output."
            raise DataError(msg) from error

    return checked


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, with which services and containers are stopped, do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # others may not set it
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None where another language's code had set it


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Open the results; each row is written when it is there, so that whatever ends the run leaves those before."""
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding does not have
        yield sys.stdout
        return
    try:
        # names that are not UTF-8 keep their bytes
        file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        msg = f"Cannot write {path} ({error.strerror}): give another file with --output."
        raise DataError(msg) from error
    with file:
        yield file
