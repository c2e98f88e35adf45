"""The folder of a benchmark.

::

    RUN/benchmark.yaml                 what was asked for, every default written out
    RUN/cells.json                     its cells by name, in order, and the means to take
    RUN/cells/<name>/result.json       a finished cell: see :class:`~.result.Result`
    RUN/cells/<name>/predictions.npz   its raw scores, and maps, of the test images
    RUN/failures/<name>.json           a failed cell: its error in a sentence, and the traceback
    RUN/speed.json                     latency of the exports, by cell: written by benchmarks/speed.py, if at all
    RUN/table.csv, table.md            the summary
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anomalib_mixedteacher.benchmark.result import Cell, Failure, KeptPredictions, Result
from anomalib_mixedteacher.errors import ConfigurationError

Speed = Mapping[str, Mapping[str, float]]


class RunFolder:
    """A benchmark's folder; need not exist before something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def plan(self) -> Path:
        """The file with what was asked for."""
        return self.path / "benchmark.yaml"

    @property
    def speed(self) -> Path:
        """The file with latencies, by cell; not there where nobody measured them."""
        return self.path / "speed.json"

    def log(self, cell: Cell) -> Path:
        """Give the file of a failed cell, with its traceback."""
        return self.path / "failures" / f"{cell.name}.json"

    def cell(self, cell: Cell) -> Path:
        """Give the folder of a cell."""
        return self.path / "cells" / cell.name

    def is_finished(self, cell: Cell) -> bool:
        """Tell whether a cell is finished."""
        return (self.cell(cell) / "result.json").exists()

    def result(self, cell: Cell) -> Result:
        """Read a finished cell's result."""
        return Result.from_json((self.cell(cell) / "result.json").read_text(encoding="utf-8"))

    def predictions(self, cell: Cell) -> KeptPredictions:
        """Read a finished cell's predictions."""
        return KeptPredictions.load(self.cell(cell) / "predictions.npz")

    def set_cells(self, cells: Sequence[Cell], means: Mapping[str, Sequence[str]] | None = None) -> None:
        """Say which cells the benchmark has, others in the folder being an earlier plan's, and which means to take."""
        values = {"cells": {cell.name: asdict(cell) for cell in cells}, "means": dict(means or {})}
        self.write(self.path / "cells.json", values)

    def results(self) -> list[Result]:
        """Read the results of the finished cells, in the benchmark's order; see :meth:`index`."""
        return [self.result(cell) for cell in self._cells().values() if self.is_finished(cell)]

    def failures(self) -> list[Failure]:
        """Read the failed cells, in the benchmark's order; see :meth:`index`."""
        return [Failure(cell, message) for cell in self._cells().values() if (message := self.failed(cell)) is not None]

    def unfinished(self) -> dict[str, Cell]:
        """Give the cells that have neither finished nor failed, by name, in order; see :meth:`index`."""
        cells = self._cells().items()
        return {name: cell for name, cell in cells if not self.is_finished(cell) and self.failed(cell) is None}

    def known_speed(self) -> Speed:
        """Read the latencies by cell; nothing where nobody measured them."""
        values: Speed = json.loads(self.speed.read_text(encoding="utf-8")) if self.speed.exists() else {}
        return values

    def index(self) -> dict[str, Any]:
        """Read what :meth:`set_cells` wrote.

        Raises:
            ConfigurationError: If the folder is no benchmark's.
        """
        path = self.path / "cells.json"
        if not path.exists():
            msg = f"{self.path} is not the folder of a benchmark: give the --output of 'mixedteacher benchmark'."
            raise ConfigurationError(msg)
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values

    def _cells(self) -> dict[str, Cell]:
        return {name: Cell.from_values(values) for name, values in self.index()["cells"].items()}

    def save(self, result: Result, predictions: KeptPredictions) -> None:
        """Keep what a cell gave; it is finished with its result's file, which is written last."""
        place = self.cell(result.cell)
        place.mkdir(parents=True, exist_ok=True)
        predictions.save(place / "predictions.npz")
        self.write(place / "result.json", result.to_json())

    def fail(self, cell: Cell, message: str, traceback: str = "") -> None:
        """Note that a cell failed, and why."""
        self.write(self.log(cell), {"cell": asdict(cell), "message": message, "traceback": traceback})

    def failed(self, cell: Cell) -> str | None:
        """Give the sentence of a failed cell; ``None`` for any other."""
        path = self.log(cell)
        return json.loads(path.read_text(encoding="utf-8"))["message"] if path.exists() else None

    def write(self, path: Path, content: str | dict[str, Any]) -> None:
        """Write a text, or values as JSON, to a file that appears when it is whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        text = content if isinstance(content, str) else json.dumps(content, indent=1, default=str) + "\n"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
