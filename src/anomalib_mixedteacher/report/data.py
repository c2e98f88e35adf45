"""A benchmark's run folder, read once for the report."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_mixedteacher.benchmark.result import GOOD, Cell, Result
from anomalib_mixedteacher.benchmark.run_folder import Failure, RunFolder
from anomalib_mixedteacher.benchmark.tables import Speed, values_of
from anomalib_mixedteacher.errors import DataError, MixedTeacherError

SPEED = ("latency_ms", "images_per_second")
FOUND = "found_rate"

_NOT_RECORDED = "The run folder does not record it."
_NO_THRESHOLD = "No threshold could be calibrated, so nothing counts as an alarm."
_NO_DEFECTS = "The test set has no defective images."


@dataclass(frozen=True)
class Run:
    """What a run folder holds, without the predictions.

    Attributes:
        folder: The folder.
        plan: Text of ``benchmark.yaml``.
        results: One result for each model, data set and seed that finished, in the benchmark's order.
        failures: The cells that failed.
        waiting: The cells that have neither finished nor failed yet.
        left: How many these are; an earlier version's folder tells their number alone.
        speed: By name of cell, any of :data:`SPEED`.
        no_speed: Why a cell that is not in ``speed`` is not there.
    """

    folder: RunFolder
    plan: str
    results: Sequence[Result]
    failures: Sequence[Failure]
    waiting: Sequence[Cell]
    left: int
    speed: Speed
    no_speed: str

    @property
    def models(self) -> list[str]:
        """Names of all models, failed and waiting ones included."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def data_sets(self) -> list[str]:
        """Names of all data sets, also where no cell has finished."""
        return list(dict.fromkeys(cell.data for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        """All seeds."""
        return sorted({cell.seed for cell in self.cells})

    @property
    def cells(self) -> list[Cell]:
        """The finished cells, then the failed ones, then the waiting ones."""
        finished = [result.cell for result in self.results]
        return [*finished, *(failure.cell for failure in self.failures), *self.waiting]

    @property
    def unfinished(self) -> str:
        """A sentence on how much of the benchmark has been done; empty where it is all of it."""
        if not self.left:
            return ""
        finished, failed = len(self.results), len(self.failures)
        return (
            f"{finished} of {finished + failed + self.left} trainings {'has' if finished == 1 else 'have'} finished"
            f"{f' and {failed} failed' if failed else ''}; {self.left} {'is' if self.left == 1 else 'are'} still to "
            "come: all figures are of what is there, and the order of the models may change."
        )

    def of(self, model: str, data: str) -> list[Result]:
        """Give the results of a model on a data set, by ascending seed."""
        found = [result for result in self.results if (result.cell.model, result.cell.data) == (model, data)]
        return sorted(found, key=lambda result: result.cell.seed)

    def failed(self, model: str, data: str) -> list[Failure]:
        """Give the failures of a model on a data set."""
        return [failure for failure in self.failures if (failure.cell.model, failure.cell.data) == (model, data)]

    def awaited(self, model: str, data: str) -> list[str]:
        """Say in sentences which trainings of a model on a data set have not finished yet."""
        seeds = sorted(cell.seed for cell in self.waiting if (cell.model, cell.data) == (model, data))
        if len(self.seeds) == 1:
            return ["This training has not finished yet." for _ in seeds]
        return [f"The training with seed {seed} has not finished yet." for seed in seeds]

    def has(self, result: Result, name: str) -> bool:
        """Tell whether a result has a figure, and this is a finite number."""
        return math.isfinite(values_of(result, self.speed).get(name, math.nan))

    def reason(self, result: Result, name: str) -> str:
        """Say in a sentence why a result lacks a figure."""
        if name in result.missing:
            return result.missing[name]
        if name in SPEED:
            return self.no_speed
        if name == FOUND:
            calibrated = result.calibration.image is not None
            return _NO_DEFECTS if calibrated else result.missing.get("false_alarm_rate", _NO_THRESHOLD)
        return _NOT_RECORDED


def defects(result: Result) -> tuple[int, int]:
    """Count a result's found defective images, and all of them."""
    counts = [count for kind, count in result.alarms.items() if kind != GOOD]
    return sum(found for found, _ in counts), sum(images for _, images in counts)


def read_run(path: Path) -> Run:
    """Read a run folder.

    Args:
        path: The folder that a benchmark wrote.

    Returns:
        Its content; the predictions stay on disk.

    Raises:
        ConfigurationError: If the folder is no benchmark's.
        DataError: If it holds no cell yet, or a file of it is damaged.
    """
    folder = RunFolder(path)
    try:
        results, failures, unfinished = folder.results(), folder.failures(), folder.unfinished()
        plan = folder.plan.read_text(encoding="utf-8")
    except MixedTeacherError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"A file in {path} cannot be read ({error!r}): remove its cell's folder and run the benchmark again."
        raise DataError(msg) from error
    if not results and not failures:
        msg = f"Nothing has finished in {path} yet: wait for the benchmark's first training."
        raise DataError(msg)
    speed, no_speed = _read_speed(folder.speed)
    waiting = [cell for cell in unfinished.values() if cell is not None]
    return Run(folder, plan, results, failures, waiting, len(unfinished), speed, no_speed)


def _read_speed(path: Path) -> tuple[dict[str, dict[str, float]], str]:
    if not path.exists():
        return {}, f"Speed was not measured: the run folder has no {path.name}."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        speed = {
            cell: {name: float(figures[name]) for name in SPEED if isinstance(figures.get(name), int | float)}
            for cell, figures in values.items()
            if isinstance(figures, dict)
        }
    except (OSError, ValueError, AttributeError):
        return {}, f"The run folder's {path.name} cannot be read."
    return speed, "The speed of this model's export was not measured."
