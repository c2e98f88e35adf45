"""Measurements in fresh processes: cold start, peak memory and the machine's matrix-product peak."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from anomalib_mixedteacher.benchmark.exported_file import ExportedFile
from anomalib_mixedteacher.benchmark.fresh_process import RESULT
from anomalib_mixedteacher.errors import ExportedModelError

_WORKER = ["-m", "anomalib_mixedteacher.benchmark.fresh_process"]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PEAK_SIDE = 2048

PRODUCTS = {
    "EdgeDetector": f"""
import sys
from anomalib_mixedteacher.edge import EdgeDetector
EdgeDetector(sys.argv[1], cache="cache").predict(sys.argv[2])
print({RESULT!r} + "{{}}", flush=True)
""",
    # The hint for equal terms: the edge detector computes in float32 as well.
    "OpenVINOInferencer": f"""
import sys
from anomalib.deploy import OpenVINOInferencer
OpenVINOInferencer(sys.argv[1], config={{"INFERENCE_PRECISION_HINT": "f32"}}).predict(sys.argv[2])
print({RESULT!r} + "{{}}", flush=True)
""",
}


def run_fresh(arguments: list[str], folder: str, threads: int | None = None) -> tuple[float, dict[str, float]]:
    """Run Python in a fresh process until it prints its result.

    Args:
        arguments: Arguments of the interpreter.
        folder: Working folder.
        threads: Threads for numpy; ``None`` leaves the environment as it is.

    Returns:
        Seconds from the start of the process to its result, and the result.

    Raises:
        ExportedModelError: If the process ends without one.
    """
    limit = {} if threads is None else dict.fromkeys(_THREAD_VARIABLES, str(threads))
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | limit,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith(RESULT)), None)
            seconds = time.perf_counter() - start
            process.stdout.read()
        if line is None:
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            msg = f"A fresh process could not run the model ({reason}): check that it runs alone, and the free memory."
            raise ExportedModelError(msg)
    return seconds, json.loads(line.removeprefix(RESULT))


def measure_memory(file: ExportedFile, size: int) -> float | None:
    """Measure the peak resident memory of a process that loads and runs just one file, without a model cache.

    Args:
        file: The file.
        size: Side of the image in pixels.

    Returns:
        Megabytes (10^6 bytes), the interpreter, openvino and numpy included; ``None`` where the system does not tell.
    """
    with tempfile.TemporaryDirectory() as folder:
        _, result = run_fresh(_arguments(file, size), folder)
    return result.get("memory_mb")


def measure_cold_start(file: ExportedFile, size: int, starts: int) -> float:
    """Measure the time from the start of a process to a file's first result, with a warm model cache.

    Args:
        file: The file.
        size: Side of the image in pixels.
        starts: How many processes, after one that fills the cache.

    Returns:
        Seconds in the median process.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _median_start([*_arguments(file, size), folder], folder, starts)


def compare_products(path: Path, size: int, starts: int) -> dict[str, float]:
    """Measure cold starts of this package's edge detector and of anomalib's inferencer on one file.

    Args:
        path: Path of an exported MixedTeacher.
        size: Side of the image in pixels.
        starts: How many processes of each, after one that fills the model cache.

    Returns:
        Seconds in the median process, by name: from its start to the result for an image file.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    seconds = {}
    for name, code in PRODUCTS.items():
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "image.png"
            Image.fromarray(pixels).save(image)
            seconds[name] = _median_start(["-c", code, str(path.absolute()), str(image)], folder, starts)
    return seconds


def measure_peak(threads: int, side: int = _PEAK_SIDE) -> float:
    """Measure the machine's rate in a float32 matrix product: the higher one of OpenVINO's and numpy's.

    Args:
        threads: How many threads.
        side: Side of the square matrices.

    Returns:
        10^9 multiply-adds a second in the fastest of several repetitions.
    """
    with tempfile.TemporaryDirectory() as folder:
        _, result = run_fresh([*_WORKER, "peak", str(threads), str(side)], folder, threads)
    return result["gmacs_per_second"]


def _arguments(file: ExportedFile, size: int) -> list[str]:
    return [*_WORKER, "run", str(file.path.absolute()), str(size), file.precision]


def _median_start(arguments: list[str], folder: str, starts: int) -> float:
    run_fresh(arguments, folder)
    return median(run_fresh(arguments, folder)[0] for _ in range(starts))
