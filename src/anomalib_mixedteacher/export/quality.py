"""What a graph detects: AUROC of its raw scores and maps on labelled images, and what quantisation loses of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.data import AnomalibDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Resize

from anomalib_mixedteacher.benchmark.scores import Predictions, image_kinds, stack, summarize
from anomalib_mixedteacher.components.tiles import Tiles, join_tiles, take
from mixedteacher_edge.tiling import STRIDE, Place, Tiling

Images = NDArray[np.float32]

METRICS = ("image_AUROC", "pixel_AUROC")
_RESAMPLES = 200
_MAP_SIDE = 32  # of the maps in the interval, which is of the images: neighbouring pixels say the same


def compile_exactly(model: openvino.Model) -> openvino.CompiledModel:
    """Compile for the CPU in float32; OpenVINO would take bfloat16 where the processor has it."""
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def batches(dataset: Dataset, resize: Resize | None) -> Iterator[tuple[Images, Any]]:
    """Read a data set image by image, resized as in training.

    Args:
        dataset: An anomalib data set.
        resize: What the model's transform starts with.

    Yields:
        Images of shape ``(1, 3, H, W)`` in ``[0, 1]``, and anomalib's batch of one, its mask at the file's size.
    """
    for batch in DataLoader(dataset, batch_size=1, collate_fn=dataset.collate_fn):  # type: ignore[attr-defined]
        if resize is not None:
            batch.image = resize(batch.image)
        yield batch.image.numpy(), batch


def labelled(datamodule: AnomalibDataModule, splits: Iterable[str] = ("test", "val")) -> Any:
    """Find a split that has both good and defective images; ``None`` if none has."""
    for split in splits:
        data = getattr(datamodule, f"{split}_data", None)
        if data is not None and set(data.samples.label_index) >= {0, 1}:
            return data
    return None


def run(model: openvino.CompiledModel, images: Images, tiles: Tiles | None = None) -> tuple[float, Images]:
    """Run a graph over an image, whole or tile by tile.

    Args:
        model: Compiled graph with the outputs ``pred_score`` and ``anomaly_map``, not normalised.
        images: Image of shape ``(1, 3, H, W)``.
        tiles: How to cut; ``None`` for the whole image.

    Returns:
        Score, and map of shape ``(H, W)``; of tiles each value is repeated over 4 x 4 pixels.
    """

    def maps(parts: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        del places
        return torch.cat([torch.from_numpy(model(part[None].numpy())["anomaly_map"].copy()) for part in parts])

    if tiles is None:
        result = model(images)
        return float(result["pred_score"].item()), result["anomaly_map"].reshape(result["anomaly_map"].shape[-2:])
    joined = join_tiles(torch.from_numpy(images[0]), tiles, maps)
    return float(joined.max()), joined.repeat(STRIDE, 0).repeat(STRIDE, 1)[: images.shape[-2], : images.shape[-1]]


def predict(
    model: openvino.CompiledModel,
    items: Iterable[tuple[Images, Any]],
    kinds: list[str],
    tiles: Tiles | None = None,
) -> Predictions:
    """Run a graph over labelled images; see :func:`run`.

    Args:
        model: Compiled graph with the outputs ``pred_score`` and ``anomaly_map``.
        items: What :func:`batches` yields.
        kinds: Kind of each image.
        tiles: How to cut; ``None`` for whole images.

    Returns:
        Scores and maps as the graph gives them. Images without a mask count as good everywhere.
    """
    scores, maps, labels, masks = [], [], [], []
    for images, batch in items:
        score, anomaly_map = run(model, images, tiles)
        scores.append(torch.tensor([score]))
        size = anomaly_map.shape
        maps.append(torch.from_numpy(anomaly_map.copy())[None])
        labels.append(batch.gt_label.int())
        mask = (
            torch.zeros(1, 1, *size)
            if batch.gt_mask is None
            else batch.gt_mask.reshape(1, 1, *batch.gt_mask.shape[-2:])
        )
        masks.append((torch.nn.functional.interpolate(mask.float(), size)[:, 0] > 0).int())
    return Predictions(torch.cat(scores), stack(maps), torch.cat(labels), stack(masks), kinds)


def predict_dataset(model: openvino.Model, dataset: Any, resize: Resize | None, tiles: Tiles | None) -> Predictions:
    """Run a graph over an anomalib data set; see :func:`predict`."""
    return predict(compile_exactly(model), batches(dataset, resize), image_kinds(dataset.samples), tiles)


def tiles_of(images: Iterable[Images], tiling: Tiling, count: int) -> list[Images]:
    """Cut images into tiles of shape ``(1, 3, size, size)``, at most so many of each, spread evenly."""
    found: list[torch.Tensor] = []
    for number, image in enumerate(images):
        places = tiling.sample(image.shape[-2], image.shape[-1], count, number)
        found += take(torch.from_numpy(image[0]), places, tiling)[:, None].unbind()
    return [tile.numpy() for tile in found]


def auroc(predictions: Predictions) -> dict[str, float]:
    """Give ``image_AUROC``, and ``pixel_AUROC`` where there are masks."""
    return {name: value for name, value in summarize(predictions).items() if name in METRICS}


def least_losses(before: Predictions, after: Predictions) -> dict[str, tuple[float, float]]:
    """Give the central 95 % interval of what is lost of each AUROC, by a paired bootstrap over the images.

    Args:
        before: Predictions of a graph.
        after: Those of another graph for the same images.
    """
    before, after = (_thinned(predictions) for predictions in (before, after))
    generator = torch.Generator().manual_seed(0)
    losses: dict[str, list[float]] = {}
    for _ in range(_RESAMPLES):
        chosen = torch.randint(len(before.labels), (len(before.labels),), generator=generator)
        first, second = (auroc(_subset(predictions, chosen)) for predictions in (before, after))
        for name in first.keys() & second.keys():
            losses.setdefault(name, []).append(first[name] - second[name])
    return {name: tuple(np.quantile(values, (0.025, 0.975)).tolist()) for name, values in losses.items()}


def _thinned(p: Predictions) -> Predictions:
    if not p.maps.numel():  # of images of several sizes
        return p
    size = (min(_MAP_SIDE, p.maps.shape[-2]), min(_MAP_SIDE, p.maps.shape[-1]))
    maps, masks = (torch.nn.functional.interpolate(x[:, None].float(), size)[:, 0] for x in (p.maps, p.masks))
    return replace(p, maps=maps, masks=masks.int())


def _subset(p: Predictions, chosen: torch.Tensor) -> Predictions:
    kinds = [p.kinds[index] for index in chosen.tolist()]
    return Predictions(p.scores[chosen], p.maps[chosen], p.labels[chosen], p.masks[chosen], kinds)
