"""Set the thresholds of a checkpoint or an exported model anew from a folder of good images, without training."""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import openvino
import torch
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor

from anomalib_mixedteacher.calibration.post_processor import NormalCalibratedPostProcessor
from anomalib_mixedteacher.calibration.report import CalibrationReport
from anomalib_mixedteacher.components.images import check_image, read_image
from anomalib_mixedteacher.edge.loading import check_fits, fixed_size, model_file, read_file
from anomalib_mixedteacher.edge.record import read_record, record_path
from anomalib_mixedteacher.edge.sources import images_below
from anomalib_mixedteacher.errors import CalibrationError, DataError, ExportedModelError
from anomalib_mixedteacher.models.restore import load_model, read_checkpoint


def calibrate_checkpoint(
    checkpoint: Path,
    good: Path,
    output: Path,
    alarm_rate: float,
    min_area: int = 16,
    tail_fit: bool = False,
) -> CalibrationReport:
    """Calibrate a checkpoint on a folder of good images that it was not trained on, and write it anew.

    Args:
        checkpoint: A checkpoint that anomalib's Engine wrote.
        good: Folder of good images.
        output: The calibrated checkpoint to write; a report is written beside it, as JSON.
        alarm_rate: Share of good images that may raise an alarm.
        min_area: Pixels of the anomaly map from which a region counts; see :class:`NormalCalibratedPostProcessor`.
        tail_fit: Estimate the threshold where the images are too few for the budget.

    Returns:
        The report.

    Raises:
        CalibrationError: If the images are too few for the budget, or the output cannot be written.
        ConfigurationError: If the checkpoint is not one of the package's models.
        DataError: If an image cannot be read.
    """
    processor = NormalCalibratedPostProcessor(alarm_rate=alarm_rate, min_area=min_area, tail_fit=tail_fit)
    content = read_checkpoint(checkpoint)
    _check_folder(output)
    module = load_model(checkpoint)
    _score(module, _checked_images(good), processor)
    named = processor.calibrate(strict=True)
    state = {key: value for key, value in content["state_dict"].items() if not key.startswith("post_processor.")}
    content["state_dict"] = state | {f"post_processor.{key}": value for key, value in processor.state_dict().items()}
    # Lightning saves a callback's state as well, and restores it after the model's.
    post_processors = (PostProcessor.__name__, NormalCalibratedPostProcessor.__name__)
    content["callbacks"] = {k: v for k, v in content.get("callbacks", {}).items() if k not in post_processors}
    content["anomalib_post_processor_config"] = processor.checkpoint_config()
    content.setdefault("anomalib_components_enabled", {})["post_processor"] = True
    report = CalibrationReport.of(processor, str(output), named)
    temporary = output.with_name(f".{output.name}.tmp")
    with _writing(output):
        try:
            torch.save(content, temporary)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
        _write_report(report, output)
    return report


def calibrate_export(
    model: Path,
    good: Path,
    output: Path,
    alarm_rate: float,
    min_area: int = 16,
    tail_fit: bool = False,
) -> CalibrationReport:
    """Calibrate an exported OpenVINO model on a folder of good images, by its own scores, and write it anew.

    Args:
        model: The ``.xml`` file that this package exported.
        good: Folder of good images that the model was not trained on.
        output: The ``.xml`` file to write, with its record; a report is written beside it, as JSON.
        alarm_rate: Share of good images that may raise an alarm.
        min_area: Pixels of the anomaly map from which a region counts; see :class:`NormalCalibratedPostProcessor`.
        tail_fit: Estimate the threshold where the images are too few for the budget.

    Returns:
        The report.

    Raises:
        CalibrationError: If the images are too few for the budget, or the output cannot be written.
        DataError: If an image cannot be read.
        ExportedModelError: If the model's files are damaged, or were not exported by this package.
    """
    from anomalib_mixedteacher.export import files, graph, quality
    from anomalib_mixedteacher.export.openvino import describe, gather

    _check_folder(output)
    processor = NormalCalibratedPostProcessor(alarm_rate=alarm_rate, min_area=min_area, tail_fit=tail_fit)
    if output.suffix != ".xml":
        msg = f"--output {output} must end in .xml, as the model does."
        raise CalibrationError(msg)
    record = read_record(model_file(model))
    raw = graph.raw(read_file(openvino.Core(), model))
    if record is None:
        msg = f"{model} has no {record_path(model).name} beside it: copy the whole folder of the export."
        raise ExportedModelError(msg)
    size = fixed_size(raw)
    compiled = quality.compile_exactly(raw)
    for path in _checked_images(good):
        images = read_image(path, as_tensor=True).unsqueeze(0).numpy()
        check_fits((images.shape[-2], images.shape[-1]), size, str(path))
        gather(processor, compiled(images), [str(path)])
    named = processor.calibrate(strict=True)
    calibrated = replace(record, **describe(processor))
    judging = graph.with_post_processor(raw, processor)
    report = CalibrationReport.of(processor, str(output), named)
    with _writing(output):
        # weights that were stored in half the space become float32 when read; stored again they lose nothing
        files.write_model(judging, calibrated, output, compress_to_fp16=record.precision == "FP16")
        _write_report(report, output)
    return report


def _check_folder(output: Path) -> None:
    if not output.parent.is_dir():
        msg = f"There is no folder {output.parent} to write to: make it, or give another --output."
        raise CalibrationError(msg)
    with _writing(output), tempfile.TemporaryFile(dir=output.parent):
        pass  # known before the images are scored


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch and OpenVINO make RuntimeErrors of a full disk's
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        msg = f"Cannot write {output} ({reason}): free space there, or give another --output."
        raise CalibrationError(msg) from error


def _checked_images(good: Path) -> list[Path]:
    if not good.exists():
        msg = f"There is no file or folder {good}: check the path."
        raise DataError(msg)
    paths = images_below(good) if good.is_dir() else [good]
    for path in paths:
        check_image(path)
    return paths


def _report_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}-calibration.json")


def _write_report(report: CalibrationReport, output: Path) -> None:
    temporary = _report_path(output).with_suffix(".json.tmp")
    temporary.write_text(json.dumps(asdict(report), indent=2) + "\n")
    temporary.replace(_report_path(output))


@torch.no_grad()
def _score(module: AnomalibModule, paths: Sequence[Path], processor: NormalCalibratedPostProcessor) -> None:
    module.eval()
    # as in training; anomalib's own pre-processors resize otherwise in their forward, which is for export
    transform = module.pre_processor.transform if isinstance(module.pre_processor, PreProcessor) else None
    for path in paths:
        image = read_image(path, as_tensor=True).unsqueeze(0)
        prediction: Any = module.model(transform(image) if transform is not None else image)
        processor.gather(prediction.pred_score.flatten(), prediction.anomaly_map, [str(path)])


def main(arguments: Sequence[str]) -> None:
    """Run ``mixedteacher calibrate``.

    Args:
        arguments: What stands behind the command's name.
    """
    parser = argparse.ArgumentParser(
        prog="mixedteacher calibrate",
        description="Set the thresholds of a checkpoint or an exported model from a folder of good images.",
    )
    parser.add_argument("model", type=Path, help="checkpoint (.ckpt) that training wrote, or exported model (.xml)")
    parser.add_argument("--good", type=Path, required=True, help="folder of good images that were not trained on")
    parser.add_argument("--alarm-rate", type=float, default=0.05, help="share of good images that may raise an alarm")
    parser.add_argument("--min-area", type=int, default=16, help="pixels of the map from which a region counts")
    parser.add_argument("--tail-fit", action="store_true", help="estimate where the images are too few for the rate")
    parser.add_argument("--output", type=Path, help="default: the model's name with -calibrated")
    given = parser.parse_args(arguments)
    output = given.output or given.model.with_name(f"{given.model.stem}-calibrated{given.model.suffix}")
    calibrate = calibrate_export if given.model.suffix == ".xml" else calibrate_checkpoint
    report = calibrate(given.model, given.good, output, given.alarm_rate, given.min_area, given.tail_fit)
    print(report.text())
    print(f"model   {output}\nreport  {_report_path(output)}")
