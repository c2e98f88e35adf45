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
from mixedteacher_edge.detector import THRESHOLD
from mixedteacher_edge.errors import CalibrationError, ConfigurationError, DataError, ExportedModelError
from mixedteacher_edge.record import ModelRecord, check_files, read_record, record_path
from mixedteacher_edge.sources import images_below
from mixedteacher_edge.thresholds import Thresholds, Unit, check_min_area, check_per, part_scores
from mixedteacher_edge.tiled import make_runner
from mixedteacher_edge.tiling import STRIDE

Calibrated: TypeAlias = tuple[Thresholds, list[str]]
"""The thresholds, and the images among the good ones that do not look good."""

_NEEDED = {"scipy", "skimage"}


def calibrate_export(
    model: Path, good: Path, output: Path, alarm_rate: float, min_area: int = 16, per: Unit = "image"
) -> Calibrated:
    """Calibrate an exported OpenVINO model on a folder of good images, by its own scores, and write it anew.

    Args:
        model: The ``.xml`` file that this package exported.
        good: Folder of good images that the model was not trained on.
        output: The ``.xml`` file to write, with its record.
        alarm_rate: Share of good images that may raise an alarm.
        min_area: Pixels of the image, at the size at which the model works, from which a region counts.
        per: What the budget counts: images, or parts of images that are cut into tiles.

    Returns:
        The thresholds, and the images, or parts, that do not look good.

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
    runner = make_runner(openvino.Core(), single, record, device="CPU", properties=exactly, read=read)
    scale = STRIDE if record.tile_size else 1
    names: list[str] = []
    found: list[tuple[float, float]] = []
    for name, outputs in runner.run((str(path), path) for path in good_images(good)):
        if isinstance(outputs, DataError):
            raise outputs
        anomaly_map = outputs["anomaly_map"]
        anomaly_map = anomaly_map.reshape(anomaly_map.shape[-2:])
        parts = part_scores(outputs["pred_score"].item(), anomaly_map, min_area, per, record.tile_size, scale)
        names += [name if len(parts) == 1 else f"{name}#{number}" for number in range(len(parts))]
        found += parts
    scores, regions = zip(*found, strict=True)
    thresholds = Thresholds.from_good(scores, regions, alarm_rate, min_area, strict=True, per=per)
    _write(network, replace(record, thresholds=thresholds), output)
    return thresholds, [names[position] for position in suspects(scores)]


def set_thresholds(model: Path, output: Path, image: float | None = None, pixel: float | None = None) -> Thresholds:
    """Set an exported OpenVINO model's raw thresholds by hand, its own by default, and write it anew, in place or not.

    Where the model was calibrated on good images, its p-values and its scale's 0.25 stay; a budget is promised no more.

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
        per = check_per(given.per)
        thresholds, named = calibrate(given.model, given.good, output, given.alarm_rate, given.min_area, per)
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
    parser.add_argument("--min-area", type=int, default=16, help="pixels from which a region counts")
    parser.add_argument("--per", default="image", help="what the budget counts: image, tile, or a number of lines")
    parser.add_argument("--output", type=Path, help="default: the model's name with -calibrated")
    return parser
