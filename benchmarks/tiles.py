"""Megapixels a second and memory of exported models that work in tiles.

    python benchmarks/tiles.py exported/weights/openvino/model.xml exported-int8/weights/openvino/model.xml

The models must be of standardize=tile: they judge images of several widths. In turn, a tile alone and an image of many
tiles: above a share of 1 a tile among others takes less time than alone. Memory: the highest of a process that judges a
scan of 4,096 x 43,700 grey pixels from a PNG file, above that of one that judges a tile.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from mixedteacher_edge import EdgeDetector
from mixedteacher_edge.record import read_record

SIDE = (2048, 4096)
SCAN = (43_700, 4096)


def speed(path: Path, rounds: int) -> tuple[float, float, int]:
    """Give the seconds of a tile alone, those of a large image, and its number of tiles."""
    detector = EdgeDetector(path)
    tiling = detector.runner.tiling  # type: ignore[attr-defined]
    image = np.random.default_rng(0).integers(0, 256, SIDE, np.uint8)
    tile = image[: tiling.size, : tiling.size].copy()
    alone: list[float] = []
    whole: list[float] = []
    for number in range(rounds + 1):
        for one, seconds in ((tile, alone), (image, whole)):
            repeated = 20 if one is tile else 1
            start = time.perf_counter()
            for _ in range(repeated):
                detector.predict(one)
            if number:
                seconds.append((time.perf_counter() - start) / repeated)
    return median(alone), median(whole), len(tiling.places(*SIDE))


def memory(path: Path, image: Path) -> float:
    """Give the highest memory in MB of a process that judges an image."""
    done = subprocess.run(
        [sys.executable, __file__, "--judge", path, image], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="exported models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("runs/tiles.md"), help="file for the table")
    options = parser.parse_args()
    if options.judge:
        EdgeDetector(options.models[0]).predict(options.models[1])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
        return
    lines = [
        "| precision | megapixels a second | share of tiles alone | MB above one tile |",
        "| --- | --- | --- | --- |",
    ]
    with TemporaryDirectory() as folder:
        scan, tile = Path(folder) / "scan.png", Path(folder) / "tile.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, SCAN, np.uint8)).save(scan, compress_level=0)
        Image.fromarray(np.zeros((256, 256), np.uint8)).save(tile)
        for path in options.models:
            alone, whole, count = speed(path, options.rounds)
            above = memory(path, scan) - memory(path, tile)
            record = read_record(path)
            name = record.precision if record else path.name
            lines.append(
                f"| {name} | {SIDE[0] * SIDE[1] / whole / 1e6:.2f} | {count * alone / whole:.2f} | {above:.0f} |"
            )
    options.output.write_text("### Speed\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
