"""A long run of the edge detector: order, memory, agreement with single predictions, and a corrupt image on the way.

Run ``python -m anomalib_mixedteacher.benchmark.stream MODEL.xml --images 2000``.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_mixedteacher.edge import EdgeDetector

VARIETY = 20  # different images, given again and again


@dataclass(frozen=True)
class StreamResult:
    """What a run showed.

    Attributes:
        images: Number of images.
        in_order: Whether the items came in the order of the images.
        largest_difference: Of score and map, to single predictions.
        resident_mb: Resident memory in MB (10^6 bytes) at each tenth of the run.
        errors: What was said of images that cannot be read.
    """

    images: int
    in_order: bool
    largest_difference: float
    resident_mb: list[float]
    errors: list[str]

    def text(self) -> str:
        """Write the result as a few lines."""
        growth = self.resident_mb[-1] - self.resident_mb[1]
        return "\n".join(
            [
                f"{self.images} images, order {'kept' if self.in_order else 'LOST'}",
                f"largest difference to single predictions: {self.largest_difference:.1e}",
                f"resident memory by tenths, MB: {', '.join(f'{value:.0f}' for value in self.resident_mb)}",
                f"growth after the first tenth: {growth:+.1f} MB",
                *self.errors,
            ]
        )


def run(detector: EdgeDetector, folder: Path, images: int, size: int, queue_size: int | None = None) -> StreamResult:
    """Stream image files through a detector.

    Args:
        detector: The detector.
        folder: Folder for the image files.
        images: Number of images to stream; one in the middle is corrupt.
        size: Height and width of the images in pixels.
        queue_size: See :meth:`EdgeDetector.stream`.

    Returns:
        What was seen.
    """
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(VARIETY)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)
    expected = {str(path): detector.predict(path) for path in paths}
    corrupt = folder / "corrupt.png"
    corrupt.write_bytes(paths[0].read_bytes()[:200])

    def sources() -> Iterator[Path]:
        for index in range(images):
            yield corrupt if index == images // 2 else paths[index % VARIETY]

    names, errors, resident, difference = [], [], [], 0.0
    for index, item in enumerate(detector.stream(sources(), queue_size)):
        names.append(item.name)
        if item.prediction is None:
            errors.append(str(item.error))
        else:
            single = expected[item.name]
            apart = np.abs(item.prediction.anomaly_map - single.anomaly_map).max()
            difference = max(difference, float(apart), abs(item.prediction.score - single.score))
        if (index + 1) % max(1, images // 10) == 0:
            resident.append(resident_mb())
    return StreamResult(images, names == [str(path) for path in sources()], difference, resident, errors)


def resident_mb() -> float:
    """Read this process's resident memory in MB; NaN where the system does not tell it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS:")), float("nan"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="stream", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--queue-size", type=int)
    settings = parser.parse_args()
    detector = EdgeDetector(settings.model, performance_hint="THROUGHPUT", cache=None)
    with tempfile.TemporaryDirectory() as folder:
        print(run(detector, Path(folder), settings.images, settings.size, settings.queue_size).text())


if __name__ == "__main__":
    main()
