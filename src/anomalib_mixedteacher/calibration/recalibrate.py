"""Set the thresholds of a trained MixedTeacher anew from a folder of good images, without training."""

import argparse
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data.utils import get_image_filenames
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor

from anomalib_mixedteacher.calibration.conformal import conformal_rank, smallest_alarm_rate
from anomalib_mixedteacher.calibration.post_processor import NormalCalibratedPostProcessor
from anomalib_mixedteacher.calibration.tail import realised_alarm_rate
from anomalib_mixedteacher.components.images import check_image, read_image
from anomalib_mixedteacher.errors import CalibrationError
from anomalib_mixedteacher.models.mixed_teacher.lightning_model import MixedTeacher

_BAR = 40


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration found.

    Attributes:
        checkpoint: The calibrated checkpoint.
        alarm_rate: Budget for false alarms.
        images: Number of good images.
        image_threshold: Raw score above which an image is an alarm.
        pixel_threshold: Raw value of the anomaly map above which a pixel is marked.
        estimated: Whether the image threshold is a tail fit rather than a conformal one.
        expected_alarms: Expected false alarms in a thousand good images.
        interval: Central 95 % interval of that number, over calibration sets of this size; of no use for an estimate.
        smallest_alarm_rate: Smallest budget that this number of images can promise.
        suspects: Images that score far above the others.
        scores: Raw scores, in ascending order.
    """

    checkpoint: str
    alarm_rate: float
    images: int
    image_threshold: float
    pixel_threshold: float
    estimated: bool
    expected_alarms: float
    interval: tuple[float, float]
    smallest_alarm_rate: float
    suspects: list[str]
    scores: list[float]

    def text(self) -> str:
        """Write the report for a person, with a histogram of the scores."""
        kind = "estimated from the scores' tail" if self.estimated else "conformal"
        lines = [
            f"{self.images} good images, budget {self.alarm_rate:g}: image threshold {self.image_threshold:.6g} "
            f"({kind}), pixel threshold {self.pixel_threshold:.6g}",
        ]
        if not self.estimated:
            low, high = self.interval
            lines.append(
                f"expected false alarms in 1000 good images: {self.expected_alarms:.1f} (95 %: {low:.1f} to {high:.1f})"
            )
        lines.append(f"smallest budget these images can promise: {self.smallest_alarm_rate:.4f}")
        counts, edges = np.histogram(self.scores, bins=12)
        marked = min(int(np.searchsorted(edges, self.image_threshold, side="right")) - 1, len(counts) - 1)
        for index, (count, low) in enumerate(zip(counts, edges, strict=False)):
            mark = "  <- threshold" if index == marked else ""
            lines.append(f"{low:10.4g} {'#' * round(_BAR * count / counts.max()):{_BAR}} {count}{mark}")
        lines += [f"look whether it has a defect: {path}" for path in self.suspects]
        return "\n".join(lines)


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
        min_area: Pixels from which a region counts; see :class:`NormalCalibratedPostProcessor`.
        tail_fit: Estimate the threshold where the images are too few for the budget.

    Returns:
        The report.

    Raises:
        CalibrationError: If the images are too few for the budget, the checkpoint is not a MixedTeacher's, or the
            output has no folder.
        DataError: If an image cannot be read.
    """
    processor = NormalCalibratedPostProcessor(alarm_rate=alarm_rate, min_area=min_area, tail_fit=tail_fit)
    content = _read(checkpoint)
    if not output.parent.is_dir():
        msg = f"There is no folder {output.parent} to write to: make it, or give another --output."
        raise CalibrationError(msg)
    module = MixedTeacher.load_from_checkpoint(checkpoint, map_location="cpu")
    paths = get_image_filenames(good)
    for path in paths:
        check_image(path)
    _score(module, paths, processor)
    named = processor.calibrate(strict=True)
    state = {key: value for key, value in content["state_dict"].items() if not key.startswith("post_processor.")}
    content["state_dict"] = state | {f"post_processor.{key}": value for key, value in processor.state_dict().items()}
    # Lightning saves a callback's state as well, and restores it after the model's.
    post_processors = (PostProcessor.__name__, NormalCalibratedPostProcessor.__name__)
    content["callbacks"] = {k: v for k, v in content.get("callbacks", {}).items() if k not in post_processors}
    content["anomalib_post_processor_config"] = processor.checkpoint_config()
    content.setdefault("anomalib_components_enabled", {})["post_processor"] = True
    n = processor.image_scores.numel()
    rank = conformal_rank(n, alarm_rate)
    mean, low, high = realised_alarm_rate(n, min(rank, n))
    report = CalibrationReport(
        str(output),
        alarm_rate,
        n,
        processor.image_threshold.item(),
        processor.pixel_threshold.item(),
        rank > n,
        1000 * mean,
        (1000 * low, 1000 * high),
        smallest_alarm_rate(n),
        named,
        sorted(processor.image_scores.tolist()),
    )
    record, temporary, noted = output.with_suffix(".json"), *(output.with_name(f".{output.name}.{n}") for n in "ab")
    try:
        torch.save(content, temporary)
        noted.write_text(json.dumps(asdict(report), indent=2) + "\n")
        temporary.replace(output)
        noted.replace(record)
    finally:
        temporary.unlink(missing_ok=True)
        noted.unlink(missing_ok=True)
    return report


@torch.no_grad()
def _score(module: AnomalibModule, paths: Sequence[Path], processor: NormalCalibratedPostProcessor) -> None:
    module.eval()
    # as in training; anomalib's own pre-processors resize otherwise in their forward, which is for export
    transform = module.pre_processor.transform if isinstance(module.pre_processor, PreProcessor) else None
    for path in paths:
        image = read_image(path, as_tensor=True).unsqueeze(0)
        prediction: Any = module.model(transform(image) if transform is not None else image)
        processor.gather(prediction.pred_score.flatten(), prediction.anomaly_map, [str(path)])


def _read(checkpoint: Path) -> dict[str, Any]:
    if checkpoint.suffix in {".xml", ".onnx", ".bin"}:
        msg = f"{checkpoint} is an exported model: calibrate its checkpoint and export that again."
        raise CalibrationError(msg)
    if not checkpoint.is_file():
        msg = f"There is no checkpoint {checkpoint}: give the .ckpt file that training wrote."
        raise CalibrationError(msg)
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        msg = f"{checkpoint} is no checkpoint of anomalib's, or a damaged one: give the .ckpt file that training wrote."
        raise CalibrationError(msg) from error
    if not isinstance(content, dict) or "anomalib_mixedteacher" not in content:
        msg = (
            f"{checkpoint} is not a MixedTeacher's checkpoint: give one that MixedTeacher trained; train other models "
            "with --model.post_processor anomalib_mixedteacher.NormalCalibratedPostProcessor."
        )
        raise CalibrationError(msg)
    return content


def main(arguments: Sequence[str]) -> None:
    """Run ``mixedteacher calibrate``.

    Args:
        arguments: What stands behind the command's name.
    """
    parser = argparse.ArgumentParser(
        prog="mixedteacher calibrate", description="Set a checkpoint's thresholds from a folder of good images."
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint (.ckpt) that training wrote")
    parser.add_argument("--good", type=Path, required=True, help="folder of good images that were not trained on")
    parser.add_argument("--alarm-rate", type=float, default=0.05, help="share of good images that may raise an alarm")
    parser.add_argument("--min-area", type=int, default=16, help="pixels from which a region counts")
    parser.add_argument("--tail-fit", action="store_true", help="estimate where the images are too few for the rate")
    parser.add_argument("--output", type=Path, help="default: <checkpoint>-calibrated.ckpt")
    given = parser.parse_args(arguments)
    output = given.output or given.checkpoint.with_name(f"{given.checkpoint.stem}-calibrated.ckpt")
    report = calibrate_checkpoint(
        given.checkpoint, given.good, output, given.alarm_rate, given.min_area, given.tail_fit
    )
    print(report.text())
    print(f"checkpoint  {output}\nreport      {output.with_suffix('.json')}")
