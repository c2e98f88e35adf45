"""A long run of the edge detector: order, memory, agreement with single predictions, and a corrupt image on the way.

python benchmarks/stream.py MODEL.xml --images 2000
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from anomalib_mixedteacher.edge import EdgeDetector

_VARIETY = 20  # different images, given again and again


def main(model: Path, images: int = 2000, image_size: int = 256) -> None:
    """Print what was seen.

    Args:
        model: The exported model's .xml file.
        images: Images to stream.
        image_size: Side of the images in pixels.
    """
    detector = EdgeDetector(model, performance_hint="THROUGHPUT", cache=None)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.png" for index in range(_VARIETY)]
        rng = np.random.default_rng(0)
        for path in paths:
            coarse = Image.fromarray(rng.integers(0, 256, (image_size // 8, image_size // 8, 3), np.uint8))
            coarse.resize((image_size, image_size), Image.Resampling.BICUBIC).save(path)
        expected = {str(path): detector.predict(path) for path in paths}
        corrupt = Path(folder) / "corrupt.png"
        corrupt.write_bytes(paths[0].read_bytes()[:200])

        def sources() -> Iterator[Path]:
            for index in range(images):
                yield corrupt if index == images // 2 else paths[index % _VARIETY]

        names, resident, difference = [], [], 0.0
        for index, item in enumerate(detector.stream(sources())):
            names.append(item.name)
            if item.prediction is None:
                print(item.error)
            else:
                single = expected[item.name]
                apart = float(np.abs(item.prediction.anomaly_map - single.anomaly_map).max())
                difference = max(difference, apart, abs(item.prediction.score - single.score))
            if (index + 1) % max(1, images // 10) == 0:
                resident.append(_resident_mb())
        print(f"{images} images, order {'kept' if names == [str(path) for path in sources()] else 'LOST'}")
    print(f"largest difference to single predictions: {difference:.1e}")
    print(f"resident memory by tenths, MB: {', '.join(f'{value:.0f}' for value in resident)}")


def _resident_mb() -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS:")), float("nan"))


if __name__ == "__main__":
    auto_cli(main)
