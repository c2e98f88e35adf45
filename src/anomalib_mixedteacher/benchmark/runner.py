"""Runs a benchmark's trainings on dask: workers of this machine, or those of a cluster.

Each worker is a process that trains one model at a time. A training whose worker dies, for want of memory most likely,
is tried again on another.
"""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from anomalib_mixedteacher.benchmark.result import Cell, Outcome
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError

try:
    import dask
    import distributed
except ModuleNotFoundError as error:
    _MISSING = "A benchmark needs dask, which is not installed: pip install 'anomalib-mixedteacher[benchmark]'."
    raise ConfigurationError(_MISSING) from error

if TYPE_CHECKING:
    from anomalib_mixedteacher.benchmark.command import Options

_POLL_SECONDS = 5
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 1,  # what has killed two workers would kill a third
    "distributed.nanny.pre-spawn-environ": {},  # with dask's own, which trims the heap, a step takes 1.4 of the time
    "distributed.worker.daemon": False,  # else a data loader could not have workers of its own
}


def run_cells(folder: RunFolder, cells: Sequence[Cell], options: "Options") -> None:
    """Run what the run folder has not finished; what failed is tried again.

    Raises:
        ConfigurationError: If the scheduler does not answer, or its workers train several models in one process.
    """
    trainings: dict[str, list[Cell]] = {}
    taken: dict[str, list[float]] = {}  # seconds of each model's trainings
    for cell in cells:
        if folder.is_finished(cell):
            taken.setdefault(cell.class_path, []).append(folder.result(cell).costs["wall_seconds"])
        else:
            trainings.setdefault(cell.training, []).append(cell)
    if taken:
        print(f"{sum(map(len, taken.values()))} of {len(cells)} results are there already.", flush=True)
    if not trainings:
        return
    waiting, running = list(trainings.values()), dict[distributed.Future, tuple[list[Cell], float]]()
    with _client(options, len(waiting)) as client:
        while waiting or running:
            workers = max(1, len(client.nthreads()))
            while waiting and len(running) < workers:
                training = waiting.pop(0)
                for cell in training:
                    folder.log(cell).unlink(missing_ok=True)
                arguments = training, str(Path.cwd()), options.keep_maps and training[0].seed == cells[0].seed
                future = client.submit(_run, *arguments, key=training[0].name, pure=False)
                running[future] = training, time.monotonic()
            with suppress(distributed.TimeoutError):  # then more workers may have come
                distributed.wait(list(running), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                training, since = running.pop(future)
                told, now = _keep(folder, training, _outcome(future)), time.monotonic()
                taken.setdefault(training[0].class_path, []).append(now - since)
                left = sum(_expected(cell, taken) for cell, *_ in waiting)
                left += sum(max(0, _expected(cell, taken) - now + begin) for (cell, *_), begin in running.values())
                number, more = len(trainings) - len(waiting) - len(running), bool(waiting or running)
                rest = f", about {max(1, round(left / workers / 60))} min left" if more else ""
                print(f"[{number}/{len(trainings)}] {told} ({now - since:.0f} s{rest})", flush=True)


def _expected(cell: Cell, taken: Mapping[str, Sequence[float]]) -> float:
    """Give the mean seconds of a model so far, or of all models for one that was not trained yet."""
    return mean(taken.get(cell.class_path) or [seconds for every in taken.values() for seconds in every])


@contextmanager
def _client(options: "Options", trainings: int) -> Iterator[distributed.Client]:
    if options.scheduler is None:
        workers = min(options.workers, trainings)
        threads = options.threads or max(1, (os.cpu_count() or 1) // workers)
        local = {
            "n_workers": workers,
            "threads_per_worker": 1,
            "memory_limit": 0,  # an even share would end a training that needs more than its neighbour
            "dashboard_address": None,
            "silence_logs": logging.CRITICAL,
            "env": dict.fromkeys(_THREADS, str(threads)),
        }
        with dask.config.set(_SETTINGS), distributed.LocalCluster(**local) as cluster, cluster.get_client() as client:
            yield client
        return
    try:
        client = distributed.Client(options.scheduler)
    except (OSError, ValueError) as error:
        msg = (
            f"No dask scheduler answers at {options.scheduler}: start one with 'dask scheduler', and its workers with "
            f"'dask worker {options.scheduler} --nthreads 1'."
        )
        raise ConfigurationError(msg) from error
    with client:
        if any(threads > 1 for threads in client.nthreads().values()):
            msg = "A worker of the cluster would train several models in one process: start it with --nthreads 1."
            raise ConfigurationError(msg)
        yield client


def _run(training: Sequence[Cell], directory: str, with_maps: bool) -> Outcome:
    """Train on a worker, in the directory where relative paths start."""
    os.chdir(directory)
    name = distributed.get_worker().name  # a number, on this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # a page for each training
        try:
            from anomalib_mixedteacher.benchmark.training import run_training

            return run_training(training, with_maps, name if isinstance(name, int) else 0)
        finally:
            logging.disable(logging.NOTSET)


def _outcome(future: distributed.Future) -> Outcome:
    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    error: Any = future.exception() if future.status == "error" else future.status
    if isinstance(error, distributed.KilledWorker):
        return Outcome(message="Its process was killed twice, for want of memory most likely: take a smaller batch.")
    return Outcome(message=f"It was lost by dask ({' '.join(str(error).split())}): run the benchmark again.")


def _keep(folder: RunFolder, training: Sequence[Cell], outcome: Outcome) -> str:
    """Write an outcome into the run folder, and tell it in a line."""
    head = f"{training[0].data}, seed {training[0].seed}"
    if not outcome.results:
        for cell in training:
            folder.fail(cell, outcome.message, outcome.traceback)
        return f"{training[0].model}, {head}: failed. {outcome.message}"
    figures = []
    for result, predictions in outcome.results:
        folder.save(result, predictions)
        auroc = result.metrics.get("image_AUROC")
        figures.append(f"{result.cell.model}: " + ("no image AUROC" if auroc is None else f"image AUROC {auroc:.3f}"))
    return f"{head}, {'; '.join(figures)}"
