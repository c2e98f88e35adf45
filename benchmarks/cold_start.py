"""From the start of a process to the first result for an image file, and its peak memory, warm model cache.

python benchmarks/cold_start.py MODEL.xml
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from common import machine, table

WAYS = {
    "EdgeDetector": "from anomalib_mixedteacher.edge import EdgeDetector\n"
    "EdgeDetector(sys.argv[1], cache='cache').predict(sys.argv[2])",
    # the hint for equal terms: the edge detector computes in float32 as well
    "anomalib's OpenVINOInferencer": "from anomalib.deploy import OpenVINOInferencer\n"
    "OpenVINOInferencer(sys.argv[1], config={'INFERENCE_PRECISION_HINT': 'f32'}).predict(sys.argv[2])",
}
_REPORT = """
status = open('/proc/self/status').read().splitlines() if os.path.exists('/proc/self/status') else []
print(next((line.split()[1] for line in status if line.startswith('VmHWM:')), 'nan'), flush=True)
"""


def main(model: Path, image_size: int = 256, starts: int = 5) -> None:
    """Print medians.

    Args:
        model: The exported model's .xml file.
        image_size: Side of the image in pixels.
        starts: Processes of each, in turn, after one that fills the model cache.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), np.uint8)).save(image)
        for _ in range(starts + 1):
            for name, code in WAYS.items():
                taken[name].append(_start(f"import os, sys\n{code}\n{_REPORT}", [model.resolve(), image], folder))
    rows = []
    for name, (_, *measured) in taken.items():
        seconds, memory = (median(values) for values in zip(*measured, strict=True))
        rows.append([name, f"{seconds:.2f}", f"{memory / 1e6:.0f}"])
    print(f"{model}, {starts} processes each, {machine()}\n\n{table(['', 'cold start s', 'peak memory MB'], rows)}")


def _start(code: str, arguments: list[Path], folder: str) -> tuple[float, float]:
    """Give seconds until the result, and the peak memory in bytes."""
    start = time.perf_counter()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, cwd=folder, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = list(process.stdout)  # ends with the process; what it does behind its result takes milliseconds
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - start, float(lines[-1]) * 1024


if __name__ == "__main__":
    auto_cli(main)
