"""Rank candidate teachers in a minute each, without training: how far are a defect's features from good ones?

The nearest-neighbour distance of local features to those of good images, as PatchCore measures it (Roth et al. 2022),
on the model's own layers. Run ``python -m anomalib_mixedteacher.benchmark.probe --help``.
"""

import argparse
import sys
from collections.abc import Iterator

import torch
from anomalib.data import AnomalibDataset
from torch.nn import functional as F

from anomalib_mixedteacher import MagneticTile
from anomalib_mixedteacher.benchmark.scores import Predictions, summarize
from anomalib_mixedteacher.components.pre_processing import default_transform
from anomalib_mixedteacher.components.smoothing import gaussian_smoothing
from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.errors import MixedTeacherError
from anomalib_mixedteacher.pretraining.recipe import LAYERS

_BATCH = 16


@torch.no_grad()
def describe(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
    """Describe positions by their channel-normalised features of all layers.

    Args:
        teacher: A loaded teacher.
        images: Normalised images ``(B, 3, H, W)``.

    Returns:
        Descriptors ``(B, C, h, w)`` at the size of the first layer's map; ``C`` is the sum over layers.
    """
    maps = [F.normalize(feature, dim=1) for feature in teacher(images)]
    size = maps[0].shape[-2:]
    return torch.cat([F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps], dim=1)


def nearest_distance(queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Squared distance of each query ``(N, C)`` to its nearest neighbour in the memory ``(M, C)``: ``(N,)``."""
    products = queries @ memory.T
    smallest = (memory.square().sum(dim=1) - 2 * products).amin(dim=1)
    return (queries.square().sum(dim=1) + smallest).clamp_min(0)


def probe(
    teacher: Teacher, train: AnomalibDataset, test: AnomalibDataset, image_size: int, memory_size: int = 10_000
) -> Predictions:
    """Score a data set by the distance of its local features to those of good images.

    Args:
        teacher: A loaded teacher.
        train: Good images.
        test: Images to score, with masks.
        image_size: Side to which images are resized, in pixels.
        memory_size: Positions of good images to compare with, drawn at random with a fixed seed.

    Returns:
        Scores and maps.
    """
    generator = torch.Generator().manual_seed(0)
    share = -(-memory_size // len(train))
    memory = []
    for images, _, _ in _batches(train, image_size):
        descriptors = describe(teacher, images).permute(0, 2, 3, 1).flatten(1, 2)
        for positions in descriptors:
            memory.append(positions[torch.randperm(len(positions), generator=generator)[:share]])  # noqa: PERF401
    bank = torch.cat(memory)
    smooth = gaussian_smoothing(4.0)
    scores, maps, labels, masks = [], [], [], []
    for images, mask, label in _batches(test, image_size):
        descriptors = describe(teacher, images)
        size = descriptors.shape[-2:]
        distances = torch.stack([nearest_distance(d.flatten(1).T, bank).reshape(size) for d in descriptors])
        upsampled = F.interpolate(distances[:, None], size=(image_size, image_size), mode="bilinear")
        maps.append(smooth(upsampled)[:, 0])
        scores.append(maps[-1].amax(dim=(1, 2)))
        labels.append(label)
        masks.append(mask)
    return Predictions(
        torch.cat(scores), torch.cat(maps), torch.cat(labels), torch.cat(masks), list(test.samples.label)
    )


def _batches(data: AnomalibDataset, image_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Normalised images, masks at their size, and labels."""
    transform = default_transform((image_size, image_size))
    for start in range(0, len(data), _BATCH):
        items = [data[index] for index in range(start, min(start + _BATCH, len(data)))]
        images = torch.stack([transform(torch.as_tensor(item.image)) for item in items])
        masks = [
            F.interpolate(torch.as_tensor(item.gt_mask).float()[None, None], size=(image_size, image_size))[0, 0].int()
            if item.gt_mask is not None
            else torch.zeros(image_size, image_size, dtype=torch.int)
            for item in items
        ]
        yield images, torch.stack(masks), torch.stack([torch.as_tensor(item.gt_label) for item in items]).int()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="probe", description=__doc__)
    parser.add_argument("--root", required=True, help="folder of the magnetic tiles")
    parser.add_argument("--teacher-weights", nargs="+", default=["random", "texture"], metavar="SOURCE")
    parser.add_argument("--backbones", nargs="+", default=list(LAYERS), metavar="NAME")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--split", choices=["val", "test"], default="val", help="choose on val, report on test")
    parser.add_argument("--pool", nargs="+", default=["blowhole", "break", "crack", "fray"])
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    settings = parser.parse_args()
    try:
        datamodule = MagneticTile(root=settings.root, seed=settings.seed)
        datamodule.setup()
        test = datamodule.val_data if settings.split == "val" else datamodule.test_data
        for source in settings.teacher_weights:
            for backbone in settings.backbones:
                teacher = Teacher(backbone, LAYERS[backbone], pool=backbone == "resnet18")
                teacher.load(source)
                if source == "random":
                    images = next(_batches(datamodule.train_data, settings.image_size))[0]
                    teacher.set_normalization_statistics(images)
                found = summarize(probe(teacher, datamodule.train_data, test, settings.image_size), settings.pool)
                print(f"{source} {backbone}", {key: round(value, 3) for key, value in found.items()}, flush=True)
    except MixedTeacherError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
