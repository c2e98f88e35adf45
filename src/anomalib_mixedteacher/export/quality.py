"""What a graph detects: AUROC of its raw scores and maps on labelled images."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.data import AnomalibDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Resize

from anomalib_mixedteacher.benchmark.scores import Predictions, image_kinds, summarize

Images = NDArray[np.float32]


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


def mask_of(batch: Any, size: tuple[int, ...]) -> torch.Tensor:
    """Resize the mask of a batch of one to the nearest pixels.

    Args:
        batch: anomalib's batch of one.
        size: Height and width.

    Returns:
        Mask of shape ``size``, 1 on the defect; 0 everywhere if there is none.
    """
    if batch.gt_mask is None:
        return torch.zeros(size, dtype=torch.int)
    mask = batch.gt_mask.reshape(1, 1, *batch.gt_mask.shape[-2:]).float()
    return (torch.nn.functional.interpolate(mask, size)[0, 0] > 0).int()


def labelled(datamodule: AnomalibDataModule, splits: Iterable[str] = ("test", "val")) -> Dataset | None:
    """Find a split that has both good and defective images.

    Args:
        datamodule: A datamodule that was set up.
        splits: Splits to look at, in this order.

    Returns:
        The split's data set; ``None`` if no split has both.
    """
    for split in splits:
        data = getattr(datamodule, f"{split}_data", None)
        if data is not None and set(data.samples.label_index) >= {0, 1}:
            return data
    return None


def predict(model: openvino.Model, dataset: Dataset, resize: Resize | None) -> Predictions:
    """Run a graph over labelled images.

    Args:
        model: Graph with the outputs ``pred_score`` and ``anomaly_map``.
        dataset: An anomalib data set.
        resize: What the model's transform starts with.

    Returns:
        Scores and maps as the graph gives them. Images without a mask count as good everywhere.
    """
    compiled = compile_exactly(model)
    scores, maps, labels, masks = [], [], [], []
    for images, batch in batches(dataset, resize):
        result = compiled(images)
        scores.append(torch.from_numpy(result["pred_score"].reshape(1).copy()))
        anomaly_map = result["anomaly_map"]
        maps.append(torch.from_numpy(anomaly_map.reshape(1, *anomaly_map.shape[-2:]).copy()))
        labels.append(batch.gt_label.int())
        masks.append(mask_of(batch, maps[-1].shape[-2:])[None])
    kinds = image_kinds(dataset.samples)  # type: ignore[attr-defined]
    return Predictions(torch.cat(scores), torch.cat(maps), torch.cat(labels), torch.cat(masks), kinds)


def auroc(model: openvino.Model, dataset: Dataset, resize: Resize | None) -> dict[str, float]:
    """Measure a graph's image and pixel AUROC.

    Args:
        model: Graph with the outputs ``pred_score`` and ``anomaly_map``.
        dataset: An anomalib data set with good and defective images.
        resize: What the model's transform starts with.

    Returns:
        ``images`` (their number) and ``image_AUROC``; ``pixel_AUROC`` too where there are masks.
    """
    predictions = predict(model, dataset, resize)
    summary = summarize(predictions)
    measured = {name: value for name, value in summary.items() if name in {"image_AUROC", "pixel_AUROC"}}
    return {"images": float(len(predictions.scores))} | measured
