"""Set the thresholds of an exported model anew from a folder of good images, beside the camera too: without torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino

from anomalib_mixedteacher.calibration.conformal import check_alarm_rate, suspects
from anomalib_mixedteacher.calibration.output import check_folder, checked_images, write_report, writing
from anomalib_mixedteacher.calibration.report import CalibrationReport
from anomalib_mixedteacher.calibration.thresholds import check_min_area, find_threshold, region_score
from anomalib_mixedteacher.decoding import to_rgb
from anomalib_mixedteacher.edge.loading import check_fits, compile_graph, fixed_size, model_file, read_file
from anomalib_mixedteacher.edge.record import Calibration, read_record, record_path
from anomalib_mixedteacher.errors import CalibrationError, ExportedModelError
from anomalib_mixedteacher.export.files import write_model
from anomalib_mixedteacher.export.verdict import raw, with_thresholds


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
        ConfigurationError: If the budget or the area is out of range, or a package that calibration needs is missing.
        DataError: If an image cannot be read.
        ExportedModelError: If the model's files are damaged, or were not exported by this package.
    """
    check_alarm_rate(alarm_rate)
    check_min_area(min_area)
    check_folder(output)
    if output.suffix != ".xml":
        msg = f"--output {output} must end in .xml, as the model does."
        raise CalibrationError(msg)
    record = read_record(model_file(model))
    core = openvino.Core()
    network = raw(read_file(core, model))
    if record is None:
        msg = f"{model} has no {record_path(model).name} beside it: copy the whole folder of the export."
        raise ExportedModelError(msg)
    paths = checked_images(good)
    size = fixed_size(network)
    # in float32, or OpenVINO would take bfloat16 where the processor has it
    compiled = compile_graph(core, network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}, None)
    scores: dict[str, list[float]] = {"image": [], "pixel": []}
    for path in paths:
        rgb = to_rgb(path)
        check_fits((rgb.shape[0], rgb.shape[1]), size, str(path))
        image = np.divide(rgb, 255, dtype=np.float32) if rgb.dtype == np.uint8 else rgb
        result = compiled(image.transpose(2, 0, 1)[None])
        scores["image"].append(result["pred_score"].item())
        scores["pixel"].append(region_score(result["anomaly_map"].reshape(result["anomaly_map"].shape[-2:]), min_area))
    found = {kind: find_threshold(values, alarm_rate, kind, tail_fit, strict=True) for kind, values in scores.items()}
    named = [str(paths[position]) for position in suspects(scores["image"])]
    calibrated = replace(
        record,
        thresholds={kind: threshold.value for kind, threshold in found.items()},
        calibration=Calibration.of(found["image"], alarm_rate, min_area),
    )
    report = CalibrationReport.of(found, alarm_rate, str(output), named)
    with writing(output):
        # weights that were stored in half the space become float32 when read; stored again they lose nothing
        half = record.precision == "FP16"
        write_model(with_thresholds(network, found), calibrated, output, compress_to_fp16=half)
        write_report(report, output)
    return report
