"""One cell of a benchmark: a model trained, calibrated, evaluated and exported."""

import time
from datetime import datetime
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.build import build, build_data
from anomalib_mixedteacher.benchmark.costs import count_stored, export_one
from anomalib_mixedteacher.benchmark.evaluation import compute_metrics, count_alarms, keep, notes, read_calibration
from anomalib_mixedteacher.benchmark.fresh_process import peak_memory
from anomalib_mixedteacher.benchmark.inputs import digests
from anomalib_mixedteacher.benchmark.result import Cell, Result
from anomalib_mixedteacher.benchmark.run_folder import EXPORT, RunFolder
from anomalib_mixedteacher.benchmark.scores import predict
from anomalib_mixedteacher.benchmark.speed import processor_name
from anomalib_mixedteacher.post_processing.post_processor import NormalCalibratedPostProcessor


def run_cell(folder: RunFolder, cell: Cell, device: int | None = None) -> None:
    """Train, evaluate and export, and keep the outcome in the run folder.

    Args:
        folder: The run folder.
        cell: What to train.
        device: Number of the accelerator, where several cells run at once.
    """
    with folder.finish(cell) as place:
        lightning.seed_everything(cell.seed, workers=True, verbose=False)
        datamodule = build_data(cell.data_class, cell.data_args, cell.seed, cell.batch)
        datamodule.prepare_data()
        inputs = digests(cell)  # not after hours of training, which would not have seen what came meanwhile
        model, seconds = _train(cell, datamodule, device)
        trained = peak_memory()
        predictions = predict(model, datamodule)
        calibration = read_calibration(model, cell.alarm_rate)
        metrics, missing, curves = compute_metrics(predictions, calibration)
        keep(predictions, list(datamodule.test_data.samples.image_path)).save(place / "predictions.npz")
        exported = export_one(model, place / EXPORT, cell.image_size).parent
        size = sum(path.stat().st_size for path in exported.iterdir())
        costs = {"train_seconds": seconds, "stored_numbers": count_stored(model), "file_mb": size / 1e6}
        result = Result(
            cell=cell,
            metrics=metrics,
            missing=missing,
            notes=notes(predictions, calibration, cell.alarm_rate),
            calibration=calibration,
            alarms=count_alarms(predictions, calibration),
            curves=curves,
            costs=costs | ({} if trained is None else {"peak_memory_mb": trained}),
            made={
                "date": datetime.now().astimezone().isoformat(timespec="seconds"),
                "version": __version__,
                "torch": str(torch.__version__),
                "processor": processor_name(),
            },
            inputs=inputs,
        )
        (place / "result.json").write_text(result.to_json(), encoding="utf-8")


def _train(cell: Cell, datamodule: AnomalibDataModule, device: int | None) -> tuple[AnomalibModule, float]:
    post_processor = NormalCalibratedPostProcessor(cell.alarm_rate)
    arguments: dict[str, Any] = {**cell.init_args, "post_processor": post_processor}
    model, callbacks = build(cell.class_path, cell.teacher_weights, cell.image_size, **arguments)
    with TemporaryDirectory() as folder:
        engine = Engine(
            callbacks,
            default_root_dir=folder,
            devices=1 if device is None or not torch.accelerator.is_available() else [device],
            max_epochs=cell.epochs,
            check_val_every_n_epoch=cell.epochs,  # sets the thresholds, once
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        start = time.perf_counter()
        engine.fit(model=model, datamodule=datamodule)
        seconds = time.perf_counter() - start
    return model.to("cpu").eval(), seconds
