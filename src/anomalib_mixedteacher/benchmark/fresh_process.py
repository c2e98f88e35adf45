"""What the speed benchmark runs in processes of their own: openvino and numpy, neither torch nor anomalib.

Run by :mod:`.cold_start` as ``python -m anomalib_mixedteacher.benchmark.fresh_process``.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13

from anomalib_mixedteacher.benchmark.exported_file import ExportedFile

RESULT = "result "
"""What the line with the result begins with."""

_PEAK_REPETITIONS = 20


def run_once(path: str, size: int, precision: str, cache: str | None) -> dict[str, float]:
    """Load a file and run it on one image.

    Args:
        path: Path of the ``.xml`` file.
        size: Side of the image in pixels.
        precision: ``"f32"`` or ``"bf16"``.
        cache: Folder of OpenVINO's model cache; ``None`` compiles anew.

    Returns:
        ``memory_mb``: peak resident memory of this process in megabytes (10^6 bytes), where the system tells it.
    """
    file = ExportedFile("model", Path(path), precision)
    properties = {"PERFORMANCE_HINT": "LATENCY"} | ({"CACHE_DIR": cache} if cache else {})
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    file.compile(file.read_static(size), **properties)(image)
    memory = peak_memory()
    return {} if memory is None else {"memory_mb": memory}


def peak_memory() -> float | None:
    """Give the peak resident memory of this process in megabytes, or ``None`` where the system does not tell it."""
    # Not getrusage's: that one starts at the size of the process which started this one.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kibibytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return None if kibibytes is None else kibibytes * 1024 / 1e6


def matrix_peak(threads: int, side: int) -> dict[str, float]:
    """Time a large float32 matrix product, in OpenVINO and in numpy.

    Args:
        threads: Threads for OpenVINO; numpy takes them from the environment.
        side: Side of the square matrices.

    Returns:
        ``gmacs_per_second``: the higher of both rates, in 10^9 multiply-adds a second.
    """
    left, right = np.random.default_rng(0).random((2, side, side), np.float32)
    parameter = opset13.parameter([side, side], np.float32)
    product = opset13.matmul(parameter, opset13.constant(right), transpose_a=False, transpose_b=False)
    properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(openvino.Model([product], [parameter]), "CPU", properties)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(left))
    fastest = min(_fastest(lambda: request.infer(share_outputs=True)), _fastest(lambda: left @ right))
    return {"gmacs_per_second": side**3 / fastest / 1e9}


def _fastest(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_PEAK_REPETITIONS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(arguments: list[str]) -> None:
    """Run ``run PATH SIZE PRECISION [CACHE]`` or ``peak THREADS SIDE`` and print the result as JSON."""
    if arguments[0] == "run":
        path, size, precision, *cache = arguments[1:]
        result = run_once(path, int(size), precision, cache[0] if cache else None)
    else:
        result = matrix_peak(int(arguments[1]), int(arguments[2]))
    print(RESULT + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
