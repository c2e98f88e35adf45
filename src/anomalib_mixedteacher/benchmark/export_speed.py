"""Latency and throughput of a benchmark's exports, those of one data set in turn within one process."""

import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from anomalib_mixedteacher.benchmark.exported_file import ExportedFile
from anomalib_mixedteacher.benchmark.macs import count_macs
from anomalib_mixedteacher.benchmark.result import REFERENCE, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.benchmark.tables import group
from anomalib_mixedteacher.benchmark.timing import latencies, throughputs
from anomalib_mixedteacher.errors import ExportedModelError

REPETITIONS = 40
_WARMUP = 5


def measure_speed(folder: RunFolder, repetitions: int = REPETITIONS) -> dict[str, dict[str, float]]:
    """Time the exports of the first seed in float32 on all cores, one image at a time and many at once.

    Ratios between models hold only where these were timed together: the models of one data set are, and no more at a
    time, since the compiled exports of a whole benchmark may not fit into memory. Whatever was measured before is kept
    if it has every export, and measured anew otherwise.

    Args:
        folder: A run folder.
        repetitions: Timed inferences of each export.

    Returns:
        By cell name: ``latency_ms``, the median, ``images_per_second``, ``gmacs`` (thousand million multiply-adds of an
        image, where the graph tells) and ``latency_ratio`` (median over the reference's on the same data, where it is
        among the models with images of the same size).
    """
    results = folder.results()
    first = [result for result in results if result.cell.seed == results[0].cell.seed]
    known = known_speed(folder)
    if {result.cell.name for result in first} <= known.keys():
        return known
    speed: dict[str, dict[str, float]] = {}
    for of_data in group(first, "data").values():
        for size, cells in group(of_data, "image_size").items():
            speed |= _measure(folder, cells, int(size), repetitions)
    folder.write(folder.speed, dict(speed))
    return speed


def known_speed(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Read what was measured before, by cell name; nothing where nothing was."""
    known: dict[str, dict[str, float]] = {}
    if folder.speed.exists():
        known = json.loads(folder.speed.read_text(encoding="utf-8"))
    return known


def _measure(folder: RunFolder, results: Sequence[Result], size: int, repetitions: int) -> dict[str, dict[str, float]]:
    files = [ExportedFile(result.cell.name, folder.export(result.cell)) for result in results]
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    seconds = latencies(files, image, None, repetitions, _WARMUP)
    rates = throughputs(files, image, None, repetitions)
    reference = next((result.cell.name for result in results if result.cell.model == REFERENCE), None)
    speed = {}
    for file in files:
        taken = seconds[file.label]
        speed[file.name] = {
            "latency_ms": float(np.median(taken)) * 1e3,
            "images_per_second": rates[file.label],
        }
        with suppress(ExportedModelError):
            speed[file.name]["gmacs"] = count_macs(file.read_static(size)) / 1e9
        if reference is not None:
            speed[file.name]["latency_ratio"] = float(np.median(taken / seconds[reference]))
    return speed
