"""The folder of a benchmark: one folder for each finished cell, one file for each failed one, and the summary.

::

    RUN/benchmark.yaml                 what was asked for, every default written out
    RUN/cells.json                     its cells by name, in order
    RUN/cells/<name>/result.json       a finished cell: see :class:`~.result.Result`
    RUN/cells/<name>/predictions.npz   its raw scores and maps of the test images
    RUN/cells/<name>/export/           its export to OpenVINO
    RUN/failures/<name>.json           a failed cell: the cell, and its error in a sentence
    RUN/logs/<name>.txt                what a cell printed, a failed one's traceback included
    RUN/.lock                          held by the benchmark that writes here
    RUN/speed.json                     latency, throughput and multiply-adds of the exports of the first seed
    RUN/table.csv, .json, .md          the summary
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalib_mixedteacher.benchmark.exported_file import exported_path
from anomalib_mixedteacher.benchmark.result import Cell, Result
from anomalib_mixedteacher.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

EXPORT = "export"
"""Name of the folder of an export, within its cell's."""

_MISLABELLED = "An earlier version took its good images for defects: run the benchmark again, which trains it anew."


@dataclass(frozen=True)
class Failure:
    """A cell that could not be trained or evaluated."""

    cell: Cell
    message: str


@dataclass(frozen=True)
class KeptPredictions:
    """A cell's raw predictions of its test images, as they are kept for the report.

    Attributes:
        paths: Files of the images, ``(N,)``.
        kinds: Name of each image's defect, ``"good"`` for none, ``(N,)``.
        scores: Raw image scores, ``(N,)``.
        maps: Raw anomaly maps, ``(N, h, w)``, at most 128 pixels a side; in the file to half precision. ``(N, 0, 0)``
            of a model that gives none.
        masks: Ground truth, ``(N, h, w)``, of the same size as the maps if there are any; all false where there is
            none.
    """

    paths: Sequence[str]
    kinds: Sequence[str]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Write as a compressed ``.npz`` file."""
        largest = np.abs(self.maps).max(initial=np.finfo(np.float32).tiny)
        arrays = {
            "paths": np.array(self.paths),
            "kinds": np.array(self.kinds),
            "scores": self.scores,
            "maps": (self.maps / largest).astype(np.float16),  # a product of distances may be far below its range
            "largest": largest,
            "masks": self.masks,
        }
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "KeptPredictions":
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            paths, kinds = file["paths"].tolist(), file["kinds"].tolist()
            return cls(paths, kinds, file["scores"], file["maps"] * file["largest"], file["masks"])


class RunFolder:
    """A benchmark's folder.

    Args:
        path: The folder; need not exist before something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def plan(self) -> Path:
        """The file with what was asked for."""
        return self.path / "benchmark.yaml"

    @property
    def speed(self) -> Path:
        """The file with latency and throughput: see :func:`~.export_speed.measure_speed`."""
        return self.path / "speed.json"

    def log(self, cell: Cell) -> Path:
        """Give the file of what a cell printed."""
        return self.path / "logs" / f"{cell.name}.txt"

    def cell(self, cell: Cell) -> Path:
        """Give the folder of a cell, which exists only if it is finished."""
        return self.path / "cells" / cell.name

    def export(self, cell: Cell) -> Path:
        """Give the path of a cell's OpenVINO file."""
        return exported_path(self.cell(cell) / EXPORT)

    def is_finished(self, cell: Cell) -> bool:
        """Tell whether a cell is finished, and its images were told apart."""
        return (self.cell(cell) / "result.json").exists() and not self.result(cell).mislabelled

    def result(self, cell: Cell) -> Result:
        """Read a finished cell's result."""
        return Result.from_json((self.cell(cell) / "result.json").read_text(encoding="utf-8"))

    def predictions(self, cell: Cell) -> KeptPredictions:
        """Read a finished cell's predictions."""
        return KeptPredictions.load(self.cell(cell) / "predictions.npz")

    def set_cells(self, cells: Sequence[Cell]) -> None:
        """Say which cells the benchmark has: others in the folder are an earlier plan's."""
        self.write(self._index, {"cells": {cell.name: asdict(cell) for cell in cells}})

    def results(self) -> list[Result]:
        """Read the results of the finished cells, in the benchmark's order.

        Raises:
            ConfigurationError: If the folder is no benchmark's.
        """
        return [result for result in self._read().values() if not result.mislabelled]

    def failures(self) -> list[Failure]:
        """Read the failed cells, in the benchmark's order, and those whose result must not be shown.

        Raises:
            ConfigurationError: If the folder is no benchmark's.
        """
        results, failures = self._read(), []
        for name in self._names():
            path = self.path / "failures" / f"{name}.json"
            if path.exists():
                values = json.loads(path.read_text(encoding="utf-8"))
                failures.append(Failure(Cell(**values["cell"]), values["message"]))
            elif name in results and results[name].mislabelled:
                failures.append(Failure(results[name].cell, _MISLABELLED))
        return failures

    def unfinished(self) -> dict[str, Cell | None]:
        """Give the planned cells that have neither finished nor failed, by name, in the benchmark's order.

        Returns:
            Cells; ``None`` for each where an earlier version wrote the index, which holds names alone.

        Raises:
            ConfigurationError: If the folder is no benchmark's.
        """
        done = {*self._read(), *(failure.cell.name for failure in self.failures())}
        planned = self._planned()
        values = planned if isinstance(planned, dict) else dict.fromkeys(planned)
        return {name: Cell(**cell) if cell else None for name, cell in values.items() if name not in done}

    def _read(self) -> dict[str, Result]:
        paths = {name: self.path / "cells" / name / "result.json" for name in self._names()}
        return {n: Result.from_json(path.read_text(encoding="utf-8")) for n, path in paths.items() if path.exists()}

    @property
    def _index(self) -> Path:
        return self.path / "cells.json"

    def _names(self) -> list[str]:
        return list(self._planned())

    def _planned(self) -> dict[str, dict[str, Any]] | list[str]:
        if not self._index.exists():
            msg = f"{self.path} is not the folder of a benchmark: give the --output of 'mixedteacher benchmark'."
            raise ConfigurationError(msg)
        planned: dict[str, dict[str, Any]] | list[str] = json.loads(self._index.read_text(encoding="utf-8"))["cells"]
        return planned

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other benchmarks out of the folder, until this is left or the process ends.

        Raises:
            ConfigurationError: If another one writes there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = f"Another benchmark writes to {self.path}: wait for it, or give another --output."
                raise ConfigurationError(msg) from error
            except OSError:  # a file system without locks
                pass
            yield

    def clear(self, cell: Cell) -> None:
        """Remove what an earlier call left of a cell that is to be run."""
        self._failure(cell).unlink(missing_ok=True)
        if self.speed.exists() and cell.name in json.loads(self.speed.read_text(encoding="utf-8")):
            self.speed.unlink()  # the new export may be slower, and is to be timed with the others
        if self.cell(cell).exists():
            (self.cell(cell) / "result.json").unlink(missing_ok=True)  # first: without it, the cell is not finished
            shutil.rmtree(self.cell(cell))

    @contextmanager
    def finish(self, cell: Cell) -> Iterator[Path]:
        """Give a folder to write a cell into, which takes its place when all is written.

        Yields:
            The folder aside. After an exception it is removed.
        """
        unfinished = self.cell(cell).with_name(f".{cell.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            shutil.rmtree(self.cell(cell), ignore_errors=True)
            unfinished.rename(self.cell(cell))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self._failure(cell).unlink(missing_ok=True)

    def failed(self, cell: Cell) -> str | None:
        """Give the sentence of a failed cell; ``None`` for any other."""
        path = self._failure(cell)
        return json.loads(path.read_text(encoding="utf-8"))["message"] if path.exists() else None

    def fail(self, cell: Cell, message: str) -> None:
        """Note that a cell failed."""
        self.write(self._failure(cell), {"cell": asdict(cell), "message": message})

    def _failure(self, cell: Cell) -> Path:
        return self.path / "failures" / f"{cell.name}.json"

    def write(self, path: Path, content: str | dict[str, Any]) -> None:
        """Write a text, or values as JSON, to a file that appears when it is whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n", "utf-8")
        unfinished.replace(path)
