"""What every calibration reads and writes: a folder of good images, and a report beside the calibrated model."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from anomalib_mixedteacher.calibration.report import CalibrationReport
from anomalib_mixedteacher.decoding import check_image
from anomalib_mixedteacher.edge.sources import images_below
from anomalib_mixedteacher.errors import CalibrationError, DataError


def check_folder(output: Path) -> None:
    """Check that a model can be written, before images are scored for it.

    Args:
        output: The calibrated model to write.

    Raises:
        CalibrationError: If its folder is missing or cannot be written to.
    """
    if not output.parent.is_dir():
        msg = f"There is no folder {output.parent} to write to: make it, or give another --output."
        raise CalibrationError(msg)
    with writing(output), tempfile.TemporaryFile(dir=output.parent):
        pass


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn what goes wrong while a model is written into one sentence.

    Args:
        output: The model.

    Raises:
        CalibrationError: If it cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch and OpenVINO make RuntimeErrors of a full disk's
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        msg = f"Cannot write {output} ({reason}): free space there, or give another --output."
        raise CalibrationError(msg) from error


def checked_images(good: Path) -> list[Path]:
    """Find the good images, each of which was looked at.

    Args:
        good: A folder of images, or one image.

    Raises:
        DataError: If there is none, or one cannot be used.
    """
    if not good.exists():
        msg = f"There is no file or folder {good}: check the path."
        raise DataError(msg)
    paths = images_below(good) if good.is_dir() else [good]
    for path in paths:
        check_image(path)
    return paths


def report_path(output: Path) -> Path:
    """Give the path of the report beside a calibrated model."""
    return output.with_name(f"{output.stem}-calibration.json")


def write_report(report: CalibrationReport, output: Path) -> None:
    """Write the report beside a calibrated model, as JSON.

    Args:
        report: The report.
        output: The model.
    """
    path = report_path(output)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(asdict(report), indent=2) + "\n")
    temporary.replace(path)
