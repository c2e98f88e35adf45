"""What a 12-bit camera's 16-bit files lose when nobody says that they have 12 bits.

python benchmarks/bits.py '[weave, grain]'
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from anomalib_mixedteacher.benchmark.plan import DataEntry, ModelEntry, Plan
from anomalib_mixedteacher.benchmark.training import run_training
from anomalib_mixedteacher.data.defects import DEFECTS
from anomalib_mixedteacher.data.synthetic_textures import render
from mixedteacher_edge.decoding import BITS

FOLDERS = {"normal_dir": "train", "normal_test_dir": "good", "abnormal_dir": "bad", "mask_dir": "mask"}


def main(
    categories: list[str], model: str = "MixedTeacher", epochs: int = 15, images: int = 64, image_size: int = 256
) -> None:
    """Train on grey 12-bit images with and without the bits told, and print what is found.

    Args:
        categories: Textures to draw.
        model: The model.
        epochs: Passes over the training images.
        images: Good images to train on; a third as many are tested, and as many defective ones.
        image_size: Side of the images in pixels.
    """
    print("texture, bits, image AUROC, pixel AUROC, PRO")
    for category in categories:
        with tempfile.TemporaryDirectory() as folder:
            _draw(Path(folder), category, images, image_size)
            data = DataEntry("Folder", {"name": category, "root": folder, **FOLDERS})
            plan = Plan([ModelEntry(model)], [data], max_epochs=epochs, image_size=image_size)
            for bits in (12, 16):
                os.environ[BITS] = str(bits)
                outcome = run_training(plan.cells())
                assert outcome.results, outcome.traceback
                figures = outcome.results[0][0].metrics
                found = ", ".join(f"{figures[name]:.3f}" for name in ("image_AUROC", "pixel_AUROC", "PRO"))
                print(f"{category}, {bits}, {found}", flush=True)


def _draw(root: Path, category: str, images: int, size: int) -> None:
    """Write good images and, kind by kind, defective ones with their masks."""
    wanted = [("train", "good", "train", images), ("good", "good", "test", images // 3)]
    wanted += [("bad", kind, "test", -(-images // (3 * len(DEFECTS)))) for kind in DEFECTS]
    for folder, label, split, count in wanted:
        for index in range(count):
            colours, mask = render(category, size, 0, split, label, index)
            _save(root / folder / f"{label}_{index}.png", np.rint(4095 * colours.mean(axis=-1)).astype(np.uint16))
            if folder == "bad":
                _save(root / "mask" / f"{label}_{index}.png", 255 * mask.astype(np.uint8))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    auto_cli(main)
