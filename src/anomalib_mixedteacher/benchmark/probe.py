"""Rank candidate teachers in a minute each: how far are a defect's features from good ones?

The nearest-neighbour distance of local features to those of good images, as PatchCore measures it (Roth et al. 2022),
on the model's own layers; or, with ``--epochs``, the distance of a student distilled from this teacher alone.
Run ``python -m anomalib_mixedteacher.benchmark.probe --help``.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
from anomalib.data import AnomalibDataset
from torch.nn import functional as F

from anomalib_mixedteacher import MagneticTile
from anomalib_mixedteacher.benchmark.distill import distill, standardized_maps
from anomalib_mixedteacher.benchmark.scores import Predictions, image_kinds, summarize
from anomalib_mixedteacher.components.pre_processing import default_transform
from anomalib_mixedteacher.components.smoothing import gaussian_smoothing
from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.components.upsampling import bilinear_upsample
from anomalib_mixedteacher.data._tiles import DEFECT_KINDS
from anomalib_mixedteacher.decoding import MIN_SIDE
from anomalib_mixedteacher.errors import ConfigurationError, MixedTeacherError
from anomalib_mixedteacher.pretraining.recipe import LAYERS

MEMORY_SIZE = 10_000
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


MapFunction = Callable[[torch.Tensor], torch.Tensor]


def nearest_neighbour_maps(teacher: Teacher, train: AnomalibDataset, image_size: int) -> MapFunction:
    """Remember local features of good images, and measure the distance to them.

    Args:
        teacher: A loaded teacher.
        train: Good images.
        image_size: Side to which images are resized, in pixels.

    Returns:
        Function from normalised images ``(B, 3, H, W)`` to maps ``(B, 1, h, w)`` of squared distances.
    """
    generator = torch.Generator().manual_seed(0)
    share = -(-MEMORY_SIZE // len(train))
    memory = []
    for images, _, _ in _batches(train, image_size):
        descriptors = describe(teacher, images).permute(0, 2, 3, 1).flatten(1, 2)
        memory += [d[torch.randperm(len(d), generator=generator)[:share]] for d in descriptors]
    bank = torch.cat(memory)

    def maps(images: torch.Tensor) -> torch.Tensor:
        found = describe(teacher, images)
        size = found.shape[-2:]
        return torch.stack([nearest_distance(d.flatten(1).T, bank).reshape(1, *size) for d in found])

    return maps


def distilled_maps(teacher: Teacher, train: AnomalibDataset, image_size: int, epochs: int) -> MapFunction:
    """Distil a student on good images, and compare its distances with those on good images; see :mod:`.distill`."""
    images = torch.cat([batch for batch, _, _ in _batches(train, image_size)])
    return standardized_maps(teacher, distill(teacher, images, epochs), images)


def score(maps: MapFunction, test: AnomalibDataset, image_size: int) -> Predictions:
    """Score a data set by smoothed maps and their maximum, as MixedTeacher does.

    Args:
        maps: Function from normalised images to maps.
        test: Images to score, with masks.
        image_size: Side to which images are resized, in pixels.

    Returns:
        Scores and maps.
    """
    smooth = gaussian_smoothing(4.0)
    scores, found, labels, masks = [], [], [], []
    for images, mask, label in _batches(test, image_size):
        upsampled = bilinear_upsample(maps(images), (images.shape[-2], images.shape[-1]))
        found.append(smooth(upsampled)[:, 0])
        scores.append(found[-1].amax(dim=(1, 2)))
        labels.append(label)
        masks.append(mask)
    kinds = image_kinds(test.samples)
    return Predictions(torch.cat(scores), torch.cat(found), torch.cat(labels), torch.cat(masks), kinds)


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
    parser.add_argument("--backbones", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=0, help="distil for so many epochs instead of remembering")
    parser.add_argument("--split", choices=["val", "test"], default="val", help="choose on val, report on test")
    parser.add_argument("--pool", nargs="+", choices=DEFECT_KINDS, default=["blowhole", "break", "crack", "fray"])
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    settings = parser.parse_args()
    try:
        if settings.image_size < MIN_SIDE:
            msg = f"--image-size is {settings.image_size}: give {MIN_SIDE} or more."
            raise ConfigurationError(msg)
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
                maps = (
                    distilled_maps(teacher, datamodule.train_data, settings.image_size, settings.epochs)
                    if settings.epochs
                    else nearest_neighbour_maps(teacher, datamodule.train_data, settings.image_size)
                )
                found = summarize(score(maps, test, settings.image_size), settings.pool)
                print(f"{source} {backbone}", {key: round(value, 3) for key, value in found.items()}, flush=True)
    except MixedTeacherError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
