"""Latency of a benchmark's exports over the reference's on the same data, and their multiply-adds."""

import json

import numpy as np
import openvino
import pytest
from openvino import opset13

from anomalib_mixedteacher.benchmark import command, export_speed, runner
from anomalib_mixedteacher.benchmark.plan import DataEntry, ModelEntry, Plan
from anomalib_mixedteacher.benchmark.result import Calibration, Cell, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder

SIDE = 8
SECONDS = {("Stfpm", "weave"): 1.0, ("Msfd", "weave"): 2.0, ("Msfd", "grain"): 3.0}


@pytest.fixture
def folder(tmp_path):
    """Three cells, one without a reference on its data, each with a convolution of 1 x 1 from 3 to 2 channels."""
    folder, cells = RunFolder(tmp_path / "run"), []
    for model, data in SECONDS:
        cell = Cell(model, model, {}, data, "SyntheticTextures", {}, 0, "random", SIDE, 2, 32, 0.05)
        with folder.finish(cell) as place:
            result = Result(cell, {}, {}, [], Calibration(0.5, 0.5, 20, 0.05), {}, {}, {})
            (place / "result.json").write_text(result.to_json())
        images = opset13.parameter([-1, 3, SIDE, SIDE], np.float32)
        weights = np.ones((2, 3, 1, 1), np.float32)
        graph = opset13.convolution(images, weights, [1, 1], [0, 0], [0, 0], [1, 1])
        openvino.save_model(openvino.Model([graph], [images]), folder.export(cell))
        cells.append(cell)
    folder.set_cells(cells)
    return folder


def test_measures_against_the_reference(folder, monkeypatch):
    together = []
    taken = {result.cell.name: SECONDS[result.cell.model, result.cell.data] for result in folder.results()}

    def latencies(files, *_):
        together.append(len(files))
        return {file.label: taken[file.name] * np.array([1, 5, 4]) for file in files}

    monkeypatch.setattr(export_speed, "latencies", latencies)
    monkeypatch.setattr(export_speed, "throughputs", lambda files, *_: {file.label: 7.0 for file in files})
    speed = export_speed.measure_speed(folder)
    stfpm, weave, grain = (speed[result.cell.name] for result in folder.results())
    shared = {"images_per_second": 7.0, "gmacs": pytest.approx(2 * 3 * SIDE * SIDE / 1e9)}
    assert stfpm == {"latency_ms": 4000.0, "latency_ratio": 1.0, **shared}
    assert weave == {"latency_ms": 8000.0, "latency_ratio": 2.0, **shared}
    assert grain == {"latency_ms": 12000.0, **shared}
    assert together == [2, 1]  # models of one data set are compared, so no others are in memory
    monkeypatch.setattr(export_speed, "latencies", None)
    assert export_speed.measure_speed(folder) == speed  # kept


def test_tables_are_there_when_the_timing_breaks(folder, monkeypatch):
    plan = Plan([ModelEntry("Stfpm")], [DataEntry("SyntheticTextures")])
    cells = [result.cell for result in folder.results()]
    known = {cells[0].name: {"latency_ms": 4000.0}}
    folder.write(folder.speed, known)

    def latencies(*_):
        raise MemoryError

    monkeypatch.setattr(Plan, "cells", lambda _: cells)
    monkeypatch.setattr(runner, "run_cells", lambda *_: None)
    monkeypatch.setattr(export_speed, "latencies", latencies)
    with pytest.raises(MemoryError):
        command.run(plan, folder)
    written = json.loads((folder.path / "table.json").read_text())
    assert written["cells"][cells[0].name]["latency_ms"] == 4000.0
    assert written["cells"].keys() == {cell.name for cell in cells}
