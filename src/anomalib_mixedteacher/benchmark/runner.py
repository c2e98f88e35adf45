"""Runs a benchmark's cells with anomalib's runners, each in a process of its own.

A process of its own makes the peak memory a cell's own, and a cell that the system kills for its memory does not take
the others with it. Processes are forked from one that has imported torch and anomalib and done nothing else.
"""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Generator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED
from concurrent.futures import wait as wait_for
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from anomalib.pipelines.components.base import Job, JobGenerator, Runner
from anomalib.pipelines.components.runners import ParallelRunner, SerialRunner
from tqdm import tqdm

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.inputs import changed
from anomalib_mixedteacher.benchmark.result import Cell, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError, sentence

_INTERRUPTED = 130


class CellJob(Job):
    """Trains and evaluates one cell, and says how far the benchmark is.

    Args:
        folder: The run folder.
        cells: What is to be run now.
        position: Which of these this job runs.
        jobs: How many run at a time.
    """

    name = "benchmark"

    def __init__(self, folder: Path, cells: Sequence[Cell], position: int, jobs: int) -> None:
        self._folder = RunFolder(folder)
        self._cells = cells
        self._position = position
        self._jobs = jobs

    def run(self, task_id: int | None = None) -> None:
        """Run the cell; a failure is noted in the run folder.

        Args:
            task_id: Number of the accelerator, where several cells run at once.
        """
        cell = self._cells[self._position]
        self._folder.clear(cell)
        start = time.perf_counter()
        code = _run_apart(self._folder, cell, task_id, self._jobs)
        if code != 0 and not self._folder.failed(cell):
            self._folder.fail(cell, _exit_message(code))
        _say(self._outcome(cell, time.perf_counter() - start))

    def _outcome(self, cell: Cell, seconds: float) -> str:
        head = f"[{self._position + 1}/{len(self._cells)}] {cell.model}, {cell.data}, seed {cell.seed}"
        if not self._folder.is_finished(cell):
            return f"{head}: failed. {self._folder.failed(cell)}"
        result = self._folder.result(cell)
        scored = [f"{name} {value:.3f}" for name, value in result.metrics.items() if name == "image_AUROC"]
        left = self._time_left(cell, seconds)
        return ", ".join([f"{head}: {''.join(scored) or 'no AUROC'}", f"{seconds:.0f} s", *left])

    def _time_left(self, cell: Cell, seconds: float) -> list[str]:
        """Estimate the rest from what each model took so far, and from this cell for models not seen yet."""
        done = self._cells[: self._position + 1]
        results = [self._folder.result(other) for other in done if self._folder.is_finished(other)]
        overhead = max(0.0, seconds - self._folder.result(cell).costs["train_seconds"])
        rest = sum(_expected(other, results) + overhead for other in self._cells[self._position + 1 :])
        return [f"about {max(1, round(rest / self._jobs / 60))} min left"] if rest else []

    @staticmethod
    def collect(results: list[Any]) -> list[Any]:
        """Return what is in the run folder anyway."""
        return results

    @staticmethod
    def save(results: Any) -> None:
        """Do nothing: each cell was saved when it was finished."""


class CellJobs(JobGenerator):
    """Generates a job for each cell that is to be run.

    Args:
        folder: The run folder.
        cells: What is to be run.
        jobs: How many run at a time.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell], jobs: int) -> None:
        self._folder, self._cells, self._jobs = folder, cells, jobs

    def generate_jobs(self, args: Any = None, prev_stage_result: Any = None) -> Generator[Job, None, None]:
        """Generate the jobs in the cells' order."""
        del args, prev_stage_result
        for position in range(len(self._cells)):
            yield CellJob(self._folder, self._cells, position, self._jobs)

    @property
    def job_class(self) -> type[Job]:
        """The class of the jobs."""
        return CellJob


class _WaitingRunner(ParallelRunner):
    """anomalib's parallel runner, which keeps a core busy asking whether a job has ended."""

    def _await_cleanup_processes(self, blocking: bool = False) -> None:
        running = [future for future in self.processes.values() if future is not None]
        wait_for(running, return_when=ALL_COMPLETED if blocking else FIRST_COMPLETED)
        super()._await_cleanup_processes(blocking)


def check_jobs(jobs: int) -> None:
    """Refuse more jobs than there are accelerators, each of which takes one.

    Args:
        jobs: How many cells to run at a time.

    Raises:
        ConfigurationError: If there are accelerators, but fewer.
    """
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else jobs
    if jobs > devices:
        msg = f"--jobs is {jobs}, and each job takes an accelerator of its own: give {devices}, as many as there are."
        raise ConfigurationError(msg)


def run_cells(folder: RunFolder, cells: Sequence[Cell], jobs: int = 1) -> None:
    """Run the cells that the run folder has not finished, or with other images; failed ones are tried again.

    Args:
        folder: The run folder.
        cells: All cells of the benchmark.
        jobs: How many to run at a time: each on an accelerator of its own where there are any, else on its share of the
            processor's cores.
    """
    finished = [cell for cell in cells if folder.is_finished(cell)]
    stale = [cell for cell in finished if changed(cell, folder.result(cell).inputs)]
    todo = [cell for cell in cells if cell not in finished or cell in stale]
    if stale:
        data = ", ".join(dict.fromkeys(cell.data for cell in stale))
        _say(f"{len(stale)} of {len(cells)} cells are run again, since their images or weights changed: {data}.")
    if len(todo) < len(cells):
        _say(f"{len(cells) - len(todo)} of {len(cells)} cells are finished and are not run again.")
    older = {folder.result(cell).made.get("version", "unknown") for cell in cells if cell not in todo} - {__version__}
    if older:
        versions = ", ".join(sorted(older))
        _say(f"Some of them are of version {versions}, not {__version__}: remove their folders to train them anew.")
    if not todo:
        return
    generator = CellJobs(folder.path, todo, jobs)
    runner: Runner = SerialRunner(generator) if jobs == 1 else _WaitingRunner(generator, jobs)
    runner.run({})


def _run_apart(folder: RunFolder, cell: Cell, device: int | None, jobs: int) -> int:
    """Run a cell in a process of its own and give its exit status."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([f"{__package__}.training"])
    log = folder.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    place = Path.cwd(), dict(os.environ)  # else those of the time when the first cell was run
    process = context.Process(target=_child, args=(folder.path, cell, device, jobs, log, place), name=cell.name)
    process.start()
    try:
        process.join()
    finally:
        process.kill()  # after an interruption; nothing otherwise
        process.join()
    return int(process.exitcode)


def _child(
    path: Path, cell: Cell, device: int | None, jobs: int, log: Path, place: tuple[Path, dict[str, str]]
) -> None:
    _end_with_parent()
    os.chdir(place[0])
    os.environ.clear()
    os.environ.update(place[1])
    # else data loaders would start their workers the way this process was started, which takes seconds each
    multiprocessing.set_start_method(None, force=True)
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    from anomalib_mixedteacher.benchmark.training import run_cell

    if jobs > 1 and not torch.accelerator.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    folder = RunFolder(path)
    try:
        run_cell(folder, cell, device)
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        folder.fail(cell, sentence(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process when the one that started it ends, however that does; data-loader workers end with this one."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _expected(cell: Cell, results: Sequence[Result]) -> float:
    """Give the mean training seconds of a cell's model, or of all models while it has not been trained."""
    same = [result for result in results if result.cell.model == cell.model]
    seconds = [result.costs["train_seconds"] for result in same or results]
    return sum(seconds) / len(seconds)


def _exit_message(code: int) -> str:
    if code < 0:
        return (
            f"The process was killed (signal {-code}), most likely for want of memory: take a smaller image_size or "
            "batch, or fewer jobs."
        )
    return f"The process ended with status {code}: see its log."


def _say(text: str) -> None:
    tqdm.write(text)  # above the progress bar of anomalib's runner
