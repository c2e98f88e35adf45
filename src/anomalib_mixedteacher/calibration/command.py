"""``mixedteacher calibrate``."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from anomalib_mixedteacher.calibration.output import report_path
from anomalib_mixedteacher.calibration.report import CalibrationReport
from anomalib_mixedteacher.errors import ConfigurationError

_NEEDED = {"scipy", "skimage"}


def main(arguments: Sequence[str]) -> None:
    """Run ``mixedteacher calibrate``.

    Args:
        arguments: What stands behind the command's name.

    Raises:
        ConfigurationError: If a package that calibration needs is missing, as it may be in the edge runtime.
    """
    given = _parser().parse_args(arguments)
    output = given.output or given.model.with_name(f"{given.model.stem}-calibrated{given.model.suffix}")
    calibrate: Callable[..., CalibrationReport]
    try:
        if given.model.suffix == ".xml":
            from anomalib_mixedteacher.calibration.exported import calibrate_export

            calibrate = calibrate_export
        else:
            from anomalib_mixedteacher.calibration.checkpoint import calibrate_checkpoint

            calibrate = calibrate_checkpoint
        report = calibrate(given.model, given.good, output, given.alarm_rate, given.min_area, given.tail_fit)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        msg = "calibrate needs scipy and scikit-image: pip install 'anomalib-mixedteacher-edge[calibrate]'."
        raise ConfigurationError(msg) from error
    print(report.text())
    print(f"model   {output}\nreport  {report_path(output)}")


def _parser() -> argparse.ArgumentParser:
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
    return parser
