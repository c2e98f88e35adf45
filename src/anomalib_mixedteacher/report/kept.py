"""The kept predictions of one data set: of one seed, since another seed has another split and other test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

from anomalib_mixedteacher.benchmark.result import Calibration
from anomalib_mixedteacher.benchmark.run_folder import KeptPredictions
from anomalib_mixedteacher.report.data import Run


@dataclass(frozen=True)
class Kept:
    """Predictions of a data set.

    Attributes:
        seed: The seed that most models finished, the smallest of several; ``None`` if none did.
        predictions: By the models that have any.
        calibrations: The thresholds of the same models.
        missing: A sentence for each other model.
    """

    seed: int | None
    predictions: Mapping[str, KeptPredictions]
    calibrations: Mapping[str, Calibration]
    missing: Sequence[str]


def load(run: Run, data: str, models: Sequence[str]) -> Kept:
    """Read a data set's predictions."""
    finished = [result.cell.seed for model in models for result in run.of(model, data)]
    if not finished:
        return Kept(None, {}, {}, ["No model finished on this data set."])
    seed = max(sorted(set(finished)), key=finished.count)
    predictions, calibrations, missing = {}, {}, []
    for model in models:
        result = next((result for result in run.of(model, data) if result.cell.seed == seed), None)
        if result is None:
            missing.append(f"{model} has no result with seed {seed}.")
            continue
        try:
            kept = run.folder.predictions(result.cell)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            missing.append(f"The predictions of {model} with seed {seed} cannot be read.")
            continue
        if not len(kept.paths):
            missing.append(f"{model} has no test images with seed {seed}.")
            continue
        predictions[model], calibrations[model] = kept, result.calibration
    return Kept(seed, predictions, calibrations, missing)
