"""What INT8 changes on trained models: AUROC of images and pixels, and the heights of the maps on strong defects.

    python benchmarks/teachers.py --output runs/teachers.jsonl --sources packaged --checkpoints runs/checkpoints
    python benchmarks/int8.py runs/checkpoints/*-0-packaged-fast.ckpt --output runs/int8.md

The sets are those of benchmarks/teachers.py, named by the checkpoints. Ranges come from good training images. Height:
the map's maximum on a defective image; of the ten highest, what INT8 changes, on average and at most.
"""

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from anomalib_mixedteacher.components.distillation_mixin import STATISTICS_IMAGES
from anomalib_mixedteacher.components.training_data import spread_evenly
from anomalib_mixedteacher.export import quality, quantize
from anomalib_mixedteacher.export.graph import network, resize_of
from teachers import restore

STRONGEST = 10


def measure(path: Path, data: Path) -> list[float]:
    """Give AUROC of images and pixels in FP32, what INT8 adds to them, and the mean and largest change of height."""
    module, datamodule = restore(path, data)
    resize = resize_of(module)
    exact = network(module)
    train: Any = datamodule.train_data
    keep: Any = module.float_networks
    images, good = (
        [image for image, _ in quality.batches(train.subsample(spread_evenly(len(train), count)), resize)]
        for count in (quantize.MAX_IMAGES, STATISTICS_IMAGES)
    )
    small = quantize.quantize(quantize.restandardized(module, exact, images, good, keep), images, keep)
    before, after = (quality.predict_dataset(graph, datamodule.test_data, resize, None) for graph in (exact, small))
    (image, pixel), (image8, pixel8) = (tuple(quality.auroc(found).values()) for found in (before, after))
    defects = torch.where(before.labels == 1, before.scores, -torch.inf).topk(STRONGEST).indices
    change = (after.scores[defects] / before.scores[defects] - 1).abs()
    return [image, pixel, image8 - image, pixel8 - pixel, change.mean().item(), change.max().item()]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the sets")
    parser.add_argument("--output", type=Path, default=Path("runs/int8.md"), help="file for the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    lines = ["| set | image AUROC | pixel AUROC | INT8 adds: image | pixel | height, mean | height, most |"]
    lines += ["| --- |" + " --- |" * 6]
    for path in options.checkpoints:
        image, pixel, more_image, more_pixel, mean, most = measure(path, options.data)
        cells = f"{image:.3f} | {pixel:.3f} | {more_image:+.4f} | {more_pixel:+.4f} | {mean:.1%} | {most:.1%}"
        lines.append(f"| {path.name.split('-')[0]} | {cells} |")
        print(lines[-1], flush=True)
    options.output.write_text("### INT8\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
