"""How features become a map and a score: the alternatives, judged on the features of trained models.

    python benchmarks/teachers.py --output runs/teachers.jsonl --sources packaged --checkpoints runs/checkpoints
    python benchmarks/map_choices.py runs/checkpoints/*-0-packaged-fast.ckpt --output runs/map_choices.md

Each choice differs from the default in one respect. Image AUROC, pixel AUROC and PRO are means over the checkpoints'
sets (those of benchmarks/teachers.py), at 64 x 64, of one half of each test set and of the other: choose on the first,
report the second. A defect belongs to both halves with its images only, every second one.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataset
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.benchmark.scores import Predictions, region_overlap, summarize
from anomalib_mixedteacher.components import whitening
from anomalib_mixedteacher.components.distillation_mixin import STATISTICS_IMAGES
from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.maps import gaussian_smoothing
from anomalib_mixedteacher.components.training_data import spread_evenly
from teachers import restore

SIZE = (64, 64)
Score = Callable[[torch.Tensor], torch.Tensor]


def highest(share: float) -> Score:
    """Score a map by the mean of its highest values."""
    return lambda maps: maps.flatten(1).topk(max(1, int(share * maps[0].numel()))).values.mean(dim=1)


def root_mean_power(power: int) -> Score:
    """Fuse the layers by a mean of powers."""
    return lambda layers: layers.pow(power).mean(dim=1).pow(1 / power)


KINDS = ("students", "good")  # features that the distances are from, in the order of the maps
DEFAULT: dict[str, Any] = {"ridge": 0.1, "distances": KINDS, "log": True, "sigma": 4.0}
DEFAULT |= {"fuse": root_mean_power(1), "score": highest(0)}
CHOICES: dict[str, dict[str, Any]] = {
    "default: whitened, logarithms, mean of layers, sigma 4, maximum": {},
    "not whitened": {"ridge": 1e3},
    "whitened with a ridge of 0.01": {"ridge": 0.01},
    "whitened with a ridge of 1": {"ridge": 1.0},
    "distances from the students alone": {"distances": ("students",)},
    "distances from good features alone": {"distances": ("good",)},
    "no logarithms": {"log": False},
    "root mean square of layers": {"fuse": root_mean_power(2)},
    "highest layer": {"fuse": lambda layers: layers.amax(dim=1)},
    "no smoothing": {"sigma": 0.0},
    "sigma 8": {"sigma": 8.0},
    "score: mean of the highest thousandth": {"score": highest(0.001)},
    "score: mean of the highest hundredth": {"score": highest(0.01)},
}


@dataclass
class Seen:
    """Features of teacher and student on images, labels, and masks of the maps' size."""

    teacher: Features
    student: Features
    labels: torch.Tensor
    masks: torch.Tensor


class Trained:
    """A trained model's features of good images and of its test set."""

    def __init__(self, path: Path, data: Path) -> None:
        restored, datamodule = restore(path, data)
        self.module: Any = restored.eval()
        train: Any = datamodule.train_data
        good = train.subsample(spread_evenly(len(train), STATISTICS_IMAGES))
        self.good, self.test = self.look(good), self.look(datamodule.test_data)

    @torch.no_grad()
    def look(self, dataset: AnomalibDataset) -> Seen:
        """Give the features of a data set."""
        teacher, student, labels, masks = [], [], [], []
        for batch in DataLoader(dataset, batch_size=8, collate_fn=dataset.collate_fn):
            mask = torch.zeros_like(batch.image[:, 0], dtype=torch.bool) if batch.gt_mask is None else batch.gt_mask
            images, mask = self.module.pre_processor.transform(batch.image, Mask(mask))
            teacher.append(self.module.model.teacher_features(images))
            student.append(self.module.model.student_features(images))
            labels.append(batch.gt_label.int())
            mask = mask.reshape(len(images), 1, *mask.shape[-2:]).float()
            masks.append(F.adaptive_max_pool2d(mask, SIZE)[:, 0].int())
        teachers, students = ([torch.cat(maps) for maps in zip(*some, strict=True)] for some in (teacher, student))
        return Seen(teachers, students, torch.cat(labels), torch.cat(masks))

    @torch.no_grad()
    def distances(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give the distances of the test set, and mean and deviation of good images."""
        generator = self.module.model.anomaly_map_generator
        whitening._RIDGE = ridge
        generator.set_good_statistics([(self.good.teacher, self.good.student)])
        moments = (
            F.interpolate(part[None], SIZE, mode="bilinear")[0] for part in (generator.good_mean, generator.good_std)
        )
        return generator.distance_maps(self.test.teacher, self.test.student, SIZE), *moments


def judge(choice: dict[str, Any], trained: Trained) -> list[list[float]]:
    """Give image AUROC, pixel AUROC and PRO of either half of a test set."""
    given = DEFAULT | choice
    maps, mean, std = trained.distances(given["ridge"])
    chosen = [KINDS.index(name) for name in given["distances"]]
    maps, mean, std = (part.unflatten(-3, (2, -1))[..., chosen, :, :, :].flatten(-4, -3) for part in (maps, mean, std))
    if given["log"]:
        variance = (std / mean).square().log1p()
        layers = (maps.clamp(min=1e-6).log() - mean.log() + variance / 2) / variance.sqrt()
    else:
        layers = (maps - mean) / std
    fused = given["fuse"](layers.clamp(min=0))[:, None]
    fused = gaussian_smoothing(given["sigma"] / 4)(fused)[:, 0]
    scores = given["score"](fused)
    labels, masks = trained.test.labels, trained.test.masks
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
    found: dict[str, list[list[list[float]]]] = {name: [] for name in CHOICES}
    for path in options.checkpoints:
        trained = Trained(path, options.data)
        for name, choice in CHOICES.items():
            found[name].append(judge(choice, trained))
        print(f"{path.name} is judged", flush=True)
    lines = [f"| mean of {len(options.checkpoints)} | image | pixel | PRO | the other half: image | pixel | PRO |"]
    lines += ["| --- |" + " --- |" * 6]
    for name, rows in found.items():
        means = torch.tensor(rows).mean(dim=0).flatten().tolist()
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    options.output.write_text("### Choices\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
