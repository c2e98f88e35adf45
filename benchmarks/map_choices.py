"""How distances become a map and a score: the alternatives, judged on the distances of trained models.

    python benchmarks/teachers.py --output runs/teachers.jsonl --sources packaged --checkpoints runs/checkpoints
    python benchmarks/map_choices.py runs/checkpoints/*-0-packaged-fast.ckpt --output runs/map_choices.md

Each choice differs from the default in one respect. Image AUROC, pixel AUROC and PRO are means over the checkpoints'
sets (those of benchmarks/teachers.py), at 64 x 64, of one half of each test set and of the other: choose on the first,
report the second. A defect belongs to both halves with its images only, every second one.
"""

import argparse
import logging
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.benchmark.scores import Predictions, region_overlap, summarize
from anomalib_mixedteacher.components.maps import gaussian_smoothing
from teachers import restore

SIZE = (64, 64)
Score = Callable[[torch.Tensor], torch.Tensor]


def highest(share: float) -> Score:
    """Score a map by the mean of its highest values."""
    return lambda maps: maps.flatten(1).topk(max(1, int(share * maps[0].numel()))).values.mean(dim=1)


def root_mean_power(power: int) -> Score:
    """Fuse the layers by a mean of powers."""
    return lambda layers: layers.pow(power).mean(dim=1).pow(1 / power)


DEFAULT: dict[str, Any] = {"fuse": root_mean_power(1), "sigma": 4.0, "score": highest(0), "log": True}
CHOICES: dict[str, dict[str, Any]] = {
    "default: logarithms, mean of layers, sigma 4, maximum": {},
    "distances themselves": {"log": False},
    "root mean square of layers": {"fuse": root_mean_power(2)},
    "highest layer": {"fuse": lambda layers: layers.amax(dim=1)},
    "no smoothing": {"sigma": 0.0},
    "sigma 8": {"sigma": 8.0},
    "score: mean of the highest thousandth": {"score": highest(0.001)},
    "score: mean of the highest hundredth": {"score": highest(0.01)},
}


@torch.no_grad()
def distances(path: Path, data: Path) -> tuple[torch.Tensor, ...]:
    """Give distances of the test set, labels, masks, and mean and deviation of good images."""
    restored, datamodule = restore(path, data)
    module: Any = restored.eval()
    generator = module.model.anomaly_map_generator
    maps, labels, masks = [], [], []
    for batch in datamodule.test_dataloader():
        mask = torch.zeros_like(batch.image[:, 0], dtype=torch.bool) if batch.gt_mask is None else batch.gt_mask
        images, mask = module.pre_processor.transform(batch.image, Mask(mask))
        features = module.model.teacher_features(images), module.model.student_features(images)
        maps.append(generator.distance_maps(*features, SIZE))
        labels.append(batch.gt_label.int())
        masks.append(F.adaptive_max_pool2d(mask.reshape(len(images), 1, *mask.shape[-2:]).float(), SIZE)[:, 0].int())
    good = (F.interpolate(value[None], SIZE, mode="bilinear")[0] for value in (generator.good_mean, generator.good_std))
    return torch.cat(maps), torch.cat(labels), torch.cat(masks), *good


def judge(choice: dict[str, Any], data: Iterable[torch.Tensor]) -> list[list[float]]:
    """Give image AUROC, pixel AUROC and PRO of either half of a test set."""
    given = DEFAULT | choice
    maps, labels, masks, mean, std = data
    if given["log"]:
        variance = (std / mean).square().log1p()
        layers = (maps.log() - mean.log() + variance / 2) / variance.sqrt()
    else:
        layers = (maps - mean) / std
    fused = given["fuse"](layers.clamp(min=0))[:, None]
    fused = gaussian_smoothing(given["sigma"] / 4)(fused)[:, 0]
    scores = given["score"](fused)
    # the halves have the same share of defects
    order = labels.argsort(stable=True)
    found = []
    for half in (order[::2], order[1::2]):
        part = Predictions(scores[half], fused[half], labels[half], masks[half], [""] * len(half))
        figures = summarize(part)
        found.append([figures["image_AUROC"], figures["pixel_AUROC"], region_overlap(part)[0]])
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the sets")
    parser.add_argument("--output", type=Path, default=Path("runs/map_choices.md"), help="file for the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sets = [distances(path, options.data) for path in options.checkpoints]
    lines = [f"| mean of {len(sets)} | image AUROC | pixel AUROC | PRO | the other half: image | pixel | PRO |"]
    lines += ["| --- |" + " --- |" * 6]
    for name, choice in CHOICES.items():
        means = torch.tensor([judge(choice, data) for data in sets]).mean(dim=0).flatten().tolist()
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
        print(lines[-1], flush=True)
    options.output.write_text("### Choices\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
