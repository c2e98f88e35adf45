"""Thresholds of an exported model set anew, beside the camera too: the command ``calibrate``, and by hand."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import openvino

from mixedteacher_edge import graph as graphs
from mixedteacher_edge.conformal import check_alarm_rate, suspects
from mixedteacher_edge.decoding import to_rgb
from mixedteacher_edge.detector import THRESHOLD, ImageRunner
from mixedteacher_edge.errors import CalibrationError, ConfigurationError, DataError, ExportedModelError
from mixedteacher_edge.record import ModelRecord, check_files, read_record, record_path
from mixedteacher_edge.sources import images_below
from mixedteacher_edge.thresholds import Thresholds, check_min_area, region_score

Calibrated: TypeAlias = tuple[Thresholds, list[str]]
"""The thresholds, and the images among the good ones that do not look good."""

_NEEDED = {"scipy", "skimage"}


def calibrate_export(model: Path, good: Path, output: Path, alarm_rate: float, min_area: int = 16) -> Calibrated:
    """Calibrate an exported OpenVINO model on a folder of good images, by its own scores, and write it anew.

    Args:
        model: The ``.xml`` file that this package exported.
        good: Folder of good images that the model was not trained on.
        output: The ``.xml`` file to write, with its record.
        alarm_rate: Share of good images that may raise an alarm.
        min_area: Pixels of the anomaly map from which a region counts.

    Returns:
        The thresholds, and the images that do not look good.

    Raises:
        CalibrationError: If the images are too few for the budget, or the output cannot be written.
        ConfigurationError: If the area is out of range.
        DataError: If an image cannot be read.
        ExportedModelError: If the model's files are damaged, or were not exported by this package.
    """
    check_alarm_rate(alarm_rate)
    check_min_area(min_area)
    network, record = _open(model, output)
    single = network.clone()
    graphs.set_single_image(single, model)
    # in float32, or OpenVINO would take bfloat16 where the processor has it
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    read = partial(to_rgb, bits=record.bits)
    runner = ImageRunner(openvino.Core(), single, "CPU", exactly, image_size=record.image_size, read=read)
    paths = good_images(good)
    scores, regions = [], []
    for _, outputs in runner.run((str(path), path) for path in paths):
        if isinstance(outputs, DataError):
            raise outputs
        scores.append(outputs["pred_score"].item())
        anomaly_map = outputs["anomaly_map"]
        regions.append(region_score(anomaly_map.reshape(anomaly_map.shape[-2:]), min_area))
    thresholds = Thresholds.from_good(scores, regions, alarm_rate, min_area, strict=True)
    _write(network, replace(record, thresholds=thresholds), output)
    return thresholds, [str(paths[position]) for position in suspects(scores)]


def set_thresholds(model: Path, output: Path, image: float | None = None, pixel: float | None = None) -> Thresholds:
    """Set an exported OpenVINO model's thresholds by hand, and write it anew.

    Where the model was calibrated on good images, its p-values and its scale's 0.25 stay; a budget is promised no more.

    Args:
        model: The ``.xml`` file that this package exported.
        output: The ``.xml`` file to write, with its record; it may be ``model``.
        image: Raw score from which on an image is an alarm, as the record gives it; the model's own by default.
        pixel: Raw value of the map from which on a pixel is marked; the model's own by default.

    Returns:
        The thresholds.

    Raises:
        CalibrationError: If the output cannot be written.
        ConfigurationError: If the model has no threshold for images, and none is given.
        ExportedModelError: If the model's files are damaged, or were not exported by this package.
    """
    network, record = _open(model, output)
    own = record.thresholds if image is None else replace(record.thresholds or Thresholds(image), image=image)
    if own is None:
        msg = f"{model} has no thresholds: give one for images (--image-threshold)."
        raise ConfigurationError(msg)
    before = record.thresholds or own
    thresholds = replace(own, pixel=before.value("pixel") if pixel is None else pixel, alarm_rate=None)
    _write(network, replace(record, thresholds=thresholds), output)
    return thresholds


def _open(model: Path, output: Path) -> tuple[openvino.Model, ModelRecord]:
    """Read a model without its verdict, and its record, when the output can be written."""
    if output.suffix != ".xml":
        msg = f"--output {output} must end in .xml, as the model does."
        raise CalibrationError(msg)
    check_output(output)
    path = graphs.model_file(model)
    record = read_record(path)
    if record is None:
        msg = f"{model} has no {record_path(path).name} beside it: copy the whole folder of the export."
        raise ExportedModelError(msg)
    check_files(record, path)
    # from memory, so that the files may be replaced
    network = openvino.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    return graphs.raw(network), record


def _write(network: openvino.Model, record: ModelRecord, output: Path) -> None:
    record = replace(record, score_threshold=THRESHOLD)
    assert record.thresholds is not None  # just set
    with writing(output):
        # weights that were stored in half the space become float32 when read; stored again they lose nothing
        half = record.precision == "FP16"
        graphs.write_model(graphs.with_thresholds(network, record.thresholds), record, output, compress_to_fp16=half)


def check_output(output: Path) -> None:
    """Check that a model can be written, before images are scored for it; a CalibrationError says that it cannot."""
    if not output.parent.is_dir():
        msg = f"There is no folder {output.parent} to write to: make it, or give another --output."
        raise CalibrationError(msg)
    with writing(output), tempfile.TemporaryFile(dir=output.parent):
        pass


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn what goes wrong while a model is written into a CalibrationError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch and OpenVINO make RuntimeErrors of a full disk's
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        msg = f"Cannot write {output} ({reason}): free space there, or give another --output."
        raise CalibrationError(msg) from error


def good_images(good: Path) -> list[Path]:
    """Find good images in a folder, or take one image; a DataError says that there is none."""
    if not good.exists():
        msg = f"There is no file or folder {good}: check the path."
        raise DataError(msg)
    return images_below(good) if good.is_dir() else [good]


def main(arguments: Sequence[str], calibrate_checkpoint: Callable[..., Calibrated] | None = None) -> int:
    """Run the command; ``calibrate_checkpoint`` does for checkpoints what :func:`calibrate_export` does for models."""
    given = _parser().parse_args(arguments)
    output = given.output or given.model.with_name(f"{given.model.stem}-calibrated{given.model.suffix}")
    calibrate = calibrate_export if given.model.suffix == ".xml" else calibrate_checkpoint
    if calibrate is None:
        msg = f"{given.model} is no exported model (.xml): install anomalib-mixedteacher to calibrate checkpoints."
        raise ConfigurationError(msg)
    try:
        thresholds, named = calibrate(given.model, given.good, output, given.alarm_rate, given.min_area)
        print(thresholds.text())
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        msg = "calibrate needs scipy and scikit-image: pip install 'anomalib-mixedteacher-edge[calibrate]'."
        raise ConfigurationError(msg) from error
    for path in named:
        print(f"look whether it has a defect: {path}")
    print(f"model   {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).stem} calibrate",
        description="Set the thresholds of a checkpoint or an exported model from a folder of good images.",
    )
    parser.add_argument("model", type=Path, help="exported model (.xml), or checkpoint (.ckpt) that training wrote")
    parser.add_argument("--good", type=Path, required=True, help="folder of good images that were not trained on")
    parser.add_argument("--alarm-rate", type=float, default=0.05, help="share of good images that may raise an alarm")
    parser.add_argument("--min-area", type=int, default=16, help="pixels of the map from which a region counts")
    parser.add_argument("--output", type=Path, help="default: the model's name with -calibrated")
    return parser
