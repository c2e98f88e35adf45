"""What a worker does: one training, judged by each of the maps that were asked for."""

import math
import platform
import time
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import lightning
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.models import build, build_data, needs_statistics
from anomalib_mixedteacher.benchmark.result import Calibration, Cell, KeptPredictions, Outcome, Result
from anomalib_mixedteacher.benchmark.scores import compute_metrics, count_alarms, keep, notes, predict
from anomalib_mixedteacher.errors import ConfigurationError, sentence


def run_training(cells: Sequence[Cell], with_maps: bool = False, device: int = 0) -> Outcome:
    """Train once, and judge the map of each cell, in which alone they differ; an error is caught."""
    try:
        return Outcome(_judge(cells, with_maps, device))
    except Exception as error:
        message = sentence(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Outcome(message=message, traceback=traceback.format_exc())


def _judge(cells: Sequence[Cell], with_maps: bool, device: int) -> list[tuple[Result, KeptPredictions]]:
    if (version := cells[0].version) != __version__:
        msg = f"This worker has version {__version__} and the benchmark {version}: install the same on all machines."
        raise ConfigurationError(msg)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    index = device % torch.accelerator.device_count() if accelerator else 0
    place = torch.device(accelerator.type, index) if accelerator else torch.device("cpu")
    start = time.perf_counter()
    datamodule = build_data(cells[0])
    # statistics of good images do not depend on the map, but not every map has them gathered
    trained = next((cell for cell in cells if needs_statistics(build(cell)[0])), cells[0])
    lightning.seed_everything(trained.seed, workers=True, verbose=False)
    model, callbacks = build(trained)
    results = []
    with TemporaryDirectory() as folder:
        engine = Engine(
            callbacks,
            default_root_dir=folder,
            devices=[index] if accelerator else 1,
            max_epochs=trained.max_epochs,
            check_val_every_n_epoch=trained.max_epochs,  # sets the thresholds, once
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        begin = time.perf_counter()
        engine.fit(model=model, datamodule=datamodule)
        seconds, shared = time.perf_counter() - begin, time.perf_counter() - start
        for cell in cells:
            begin, judged = time.perf_counter(), model
            if cell is not trained:
                judged, _ = build(cell)
                judged.model.load_state_dict(model.model.state_dict())
                engine.validate(model=judged, datamodule=datamodule, verbose=False)  # sets this map's thresholds
            result, kept = _evaluate(cell, judged.to(place), datamodule, with_maps)
            wall = shared + time.perf_counter() - begin
            result.costs.update({"train_seconds": seconds, "wall_seconds": wall})
            results.append((result, kept))
    return results


def _evaluate(
    cell: Cell, model: AnomalibModule, datamodule: AnomalibDataModule, with_maps: bool
) -> tuple[Result, KeptPredictions]:
    predictions, found = predict(model, datamodule), cast("Any", model.post_processor)
    thresholds = [float(value) for value in (found._image_threshold, found._pixel_threshold)]  # NaN where not found
    image, pixel = (None if math.isnan(value) else value for value in thresholds)
    calibrating = predict(model, datamodule, "val") if image is not None else None
    good = calibrating.scores[calibrating.labels == 0] if calibrating else torch.empty(0)
    reachable = max(cell.alarm_rate, 1 / (len(good) + 1)) if len(good) else cell.alarm_rate
    calibration = Calibration(image, pixel, len(good), reachable)
    metrics, missing, curves = compute_metrics(predictions, calibration)
    remarks, alarms = notes(predictions, calibration, cell.alarm_rate), count_alarms(predictions, calibration)
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    made = {"date": date, "version": __version__, "torch": str(torch.__version__), "processor": processor_name()}
    result = Result(cell, metrics, missing, remarks, calibration, alarms, curves, costs={}, made=made)
    paths = [str(Path(path).resolve()) for path in datamodule.test_data.samples.image_path]
    return result, keep(predictions, paths, good, with_maps)


def processor_name() -> str:
    """Name what computes: the accelerator, or the processor as far as the system tells."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown processor")
