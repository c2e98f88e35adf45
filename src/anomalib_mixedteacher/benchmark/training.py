"""What a worker does: one training, judged by each of the maps that were asked for."""

import logging
import os
import platform
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.evaluation import compute_metrics, count_alarms, keep, notes
from anomalib_mixedteacher.benchmark.models import build, build_data, needs_statistics
from anomalib_mixedteacher.benchmark.result import Calibration, Cell, KeptPredictions, Result
from anomalib_mixedteacher.benchmark.scores import predict
from anomalib_mixedteacher.errors import ConfigurationError, sentence


@dataclass(frozen=True)
class Outcome:
    """What a training gave: a result for each of its cells, or the reason why there is none."""

    results: Sequence[tuple[Result, KeptPredictions]] = ()
    message: str = ""
    traceback: str = ""


def run_training(cells: Sequence[Cell], directory: str, with_maps: bool, device: int = 0) -> Outcome:
    """Train once, and judge each cell's map.

    Args:
        cells: Cells that differ in their map alone.
        directory: Where relative paths start.
        with_maps: Keep the anomaly maps.
        device: Number of the accelerator, where there is any.

    Returns:
        The results, in the cells' order; an error is caught.
    """
    try:
        os.chdir(directory)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)  # a page for each training
            return Outcome(_judge(cells, with_maps, device))
    except Exception as error:
        message = sentence(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Outcome(message=message, traceback=traceback.format_exc())
    finally:
        logging.disable(logging.NOTSET)


def _judge(cells: Sequence[Cell], with_maps: bool, device: int) -> list[tuple[Result, KeptPredictions]]:
    if (version := cells[0].version) != __version__:
        msg = f"This worker has version {__version__} and the benchmark {version}: install the same on all machines."
        raise ConfigurationError(msg)
    start = time.perf_counter()
    datamodule = build_data(cells[0])
    # statistics of good images do not depend on the map, but not every map has them gathered
    trained = next((cell for cell in cells if needs_statistics(build(cell)[0])), cells[0])
    lightning.seed_everything(trained.seed, workers=True, verbose=False)
    model, callbacks = build(trained)
    with TemporaryDirectory() as folder:
        engine = _engine(folder, trained, callbacks, device)
        begin = time.perf_counter()
        engine.fit(model=model, datamodule=datamodule)
        seconds = time.perf_counter() - begin
        shared, results = time.perf_counter() - start, []
        for cell in cells:
            begin, judged = time.perf_counter(), model
            if cell is not trained:
                judged, _ = build(cell)
                judged.model.load_state_dict(model.model.state_dict())
                engine.validate(model=judged, datamodule=datamodule, verbose=False)  # sets this map's thresholds
            result, kept = _evaluate(cell, judged, datamodule, with_maps, device)
            wall = shared + time.perf_counter() - begin
            result.costs.update({"train_seconds": seconds, "wall_seconds": wall})
            results.append((result, kept))
    return results


def _engine(folder: str, cell: Cell, callbacks: list[Any], device: int) -> Engine:
    return Engine(
        callbacks,
        default_root_dir=folder,
        devices=[device % torch.accelerator.device_count()] if torch.accelerator.is_available() else 1,
        max_epochs=cell.max_epochs,
        check_val_every_n_epoch=cell.max_epochs,  # sets the thresholds, once
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )


def _evaluate(
    cell: Cell, model: AnomalibModule, datamodule: AnomalibDataModule, with_maps: bool, device: int
) -> tuple[Result, KeptPredictions]:
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        model.to(f"{accelerator.type}:{device % torch.accelerator.device_count()}")
    predictions = predict(model, datamodule)
    calibration = _read_calibration(model, datamodule, cell.alarm_rate)
    metrics, missing, curves = compute_metrics(predictions, calibration)
    result = Result(
        cell=cell,
        metrics=metrics,
        missing=missing,
        notes=notes(predictions, calibration, cell.alarm_rate),
        calibration=calibration,
        alarms=count_alarms(predictions, calibration),
        curves=curves,
        costs={},
        made={
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "version": __version__,
            "torch": str(torch.__version__),
            "processor": processor_name(),
        },
    )
    paths = [str(Path(path).resolve()) for path in datamodule.test_data.samples.image_path]
    return result, keep(predictions, paths, with_maps)


def _read_calibration(model: AnomalibModule, datamodule: AnomalibDataModule, alarm_rate: float) -> Calibration:
    """Take the thresholds that validation found."""
    post_processor: Any = model.post_processor
    image, pixel = (
        None if value.isnan() else value.item()
        for value in (post_processor._image_threshold, post_processor._pixel_threshold)
    )
    images = int((datamodule.val_data.samples.label_index == 0).sum()) if image is not None else 0
    return Calibration(image, pixel, images, max(alarm_rate, 1 / (images + 1)) if images else alarm_rate)


def processor_name() -> str:
    """Name what computes: the accelerator, or the processor as far as the system tells."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown processor")
