"""From a trained model to a lean OpenVINO model with its record."""

import copy
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.components.raw_scores import to_unit_range
from anomalib_mixedteacher.components.training_data import check_training_images
from anomalib_mixedteacher.errors import ConfigurationError, QuantizationError
from anomalib_mixedteacher.export import MAX_DROP, quality, quantize
from anomalib_mixedteacher.export.graph import network, resize_of, with_post_processor, with_resize
from anomalib_mixedteacher.post_processing.post_processor import NormalCalibratedPostProcessor
from mixedteacher_edge.graph import write_model
from mixedteacher_edge.record import ModelRecord
from mixedteacher_edge.thresholds import Thresholds

logger = logging.getLogger(__name__)

_BLAME_IMAGES = 4
_SAME = 0.01  # far above rounding, far below the spread of different images' scores
_FLOAT_THRESHOLDS = (
    "The thresholds stay those of the float model: run 'mixedteacher calibrate MODEL.xml --good FOLDER' on the export."
)


@dataclass(frozen=True)
class Compression:
    """How to make a model smaller and faster.

    Attributes:
        kind: anomalib's compression type; ``None`` for float32.
        datamodule: Good images for the ranges and thresholds, labelled ones for the loss.
        pixel: Whether the accuracy-aware mode watches the pixel AUROC rather than the image AUROC.
        max_drop: Loss of AUROC that is still written, 0 to 1.
        keep: Parts of the names of convolutions that are never quantised.
    """

    kind: CompressionType | None = None
    datamodule: AnomalibDataModule | None = None
    pixel: bool = False
    max_drop: float = MAX_DROP
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            msg = f"max_drop must be a loss of AUROC between 0 and 1, not {self.max_drop}."
            raise ConfigurationError(msg)
        if self.kind in {CompressionType.INT8_PTQ, CompressionType.INT8_ACQ} and self.datamodule is None:
            msg = f"{self.kind.value.upper()} needs images: give a datamodule (--data on the command line)."
            raise ConfigurationError(msg)


def watches_pixels(metric: Metric | None) -> bool:
    """Tell whether a metric is about pixels, by the fields that it reads."""
    return bool({"anomaly_map", "pred_mask"} & set(getattr(metric, "fields", None) or ()))


def export_openvino(
    module: AnomalibModule,
    path: Path,
    input_size: tuple[int, int] | None = None,
    compression: Compression | None = None,
    provenance: dict[str, Any] | None = None,
    onnx_kwargs: dict[str, Any] | None = None,
) -> Path:
    """Export a trained model to OpenVINO.

    Args:
        module: The model.
        path: The ``.xml`` file to write, in a folder that exists.
        input_size: Height and width of the images that the graph takes; ``None`` for any.
        compression: How to compress; float32 by default.
        provenance: Fields of the :class:`ModelRecord` that only the model knows.
        onnx_kwargs: Passed to ``torch.onnx.export``.

    Returns:
        ``path``.

    Raises:
        ConfigurationError: If images are needed and there are none.
        QuantizationError: If quantisation loses more AUROC than allowed; nothing is written then.
    """
    compression = compression or Compression()
    resize = resize_of(module)
    post_processor = module.post_processor if isinstance(module.post_processor, PostProcessor) else None
    reference = network(module, input_size, **(onnx_kwargs or {}))
    model, measured = reference, None
    if compression.datamodule is not None:
        compression.datamodule.prepare_data()
        compression.datamodule.setup(TrainerFn.FITTING)  # a plain string would let every later call split anew
    _warn_of_missing(post_processor, compression)
    if compression.kind is not None:
        model = _compressed(reference, compression, resize)
    if compression.datamodule is not None:
        _warn_of_other_images(compression.datamodule, (provenance or {}).get("training_data"))
        measured = _measure(reference, model, compression, resize)
        if model is not reference:
            post_processor = _recalibrated(post_processor, reference, model, compression.datamodule, resize)
    record = ModelRecord(
        model=module.name,
        version=__version__,
        precision="FP32" if compression.kind is None else compression.kind.value.upper(),
        image_size=(resize.size[0], resize.size[1]) if resize is not None else input_size,
        quality=measured,
        thresholds=thresholds_of(post_processor),
        **(provenance or {}),
    )
    fixed = model if resize is None else with_resize(model, input_size)
    graph = with_post_processor(fixed, post_processor)
    return write_model(graph, record, path, compression.kind == CompressionType.FP16)


def thresholds_of(post_processor: PostProcessor | None) -> Thresholds | None:
    """Describe a post-processor's thresholds for a record.

    Args:
        post_processor: anomalib's or this package's.

    Returns:
        The thresholds; ``None`` where there are none, or scores are not scaled by them.
    """
    if post_processor is None or not post_processor.enable_normalization:
        return None
    if isinstance(post_processor, NormalCalibratedPostProcessor):
        return post_processor.thresholds
    image, pixel = post_processor.image_threshold.item(), post_processor.pixel_threshold.item()
    return Thresholds(image, pixel if np.isfinite(pixel) else None) if np.isfinite(image) else None


def _is_trained_on(datamodule: AnomalibDataModule, known: dict[str, Any] | None) -> bool:
    """Tell whether a datamodule's training images are those of a record."""
    data = datamodule.train_data
    sha256 = (known or {}).get("sha256")
    return sha256 is not None and sha256 == check_training_images(data)["sha256"]


def _warn_of_missing(post_processor: PostProcessor | None, compression: Compression) -> None:
    if post_processor is not None and bool(post_processor.image_threshold.isnan()):
        logger.warning("The model has no thresholds yet: train it with validation images, or calibrate it afterwards.")
    elif post_processor is not None and not post_processor.enable_normalization:
        logger.warning(
            "The post-processor does not scale scores by its thresholds, so EdgeDetector will refuse the model: run "
            "'mixedteacher calibrate MODEL.xml --good FOLDER' on the export, or leave enable_normalization=False out."
        )
    calibrated = isinstance(post_processor, NormalCalibratedPostProcessor) and post_processor.image_scores.numel()
    if calibrated and compression.kind is not None and compression.datamodule is None:
        logger.warning(_FLOAT_THRESHOLDS)


def _warn_of_other_images(datamodule: AnomalibDataModule, known: dict[str, Any] | None) -> None:
    if known is None or known.get("sha256") is None:
        return
    if not _is_trained_on(datamodule, known):
        logger.warning(
            "The datamodule's training images are not those that the model was trained on, so its test images may be; "
            "the recorded AUROC may be too high. Give the same data, and the same --data.seed."
        )


def _compressed(model: openvino.Model, compression: Compression, resize: Any) -> openvino.Model:
    if compression.kind == CompressionType.FP16:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            openvino.save_model(model, path, compress_to_fp16=True)
            return openvino.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    if compression.kind == CompressionType.INT8:
        return nncf.compress_weights(model.clone())
    datamodule = compression.datamodule
    assert datamodule is not None  # checked by Compression
    count = min(quantize.MAX_IMAGES, len(datamodule.train_data))
    chosen = np.linspace(0, len(datamodule.train_data) - 1, count).round().astype(int).tolist()
    images = [image for image, _ in quality.batches(datamodule.train_data.subsample(chosen), resize)]
    if compression.kind == CompressionType.INT8_PTQ:
        return quantize.quantize(model.clone(), images, compression.keep)
    labelled = quality.labelled(datamodule, ("val", "test"))
    if labelled is None:
        msg = "INT8_ACQ watches the AUROC and needs good and defective images: give both, or use INT8_PTQ."
        raise ConfigurationError(msg)
    items = list(quality.batches(labelled, resize))
    measure = _pixel_auroc if compression.pixel else _image_auroc
    return quantize.quantize_accurately(model.clone(), images, items, measure, compression.max_drop, compression.keep)


def _image_auroc(model: openvino.CompiledModel, items: Iterable[Any]) -> float:
    results = [(float(model(image)["pred_score"].ravel()[0]), int(batch.gt_label)) for image, batch in items]
    scores, labels = zip(*results, strict=True)
    return binary_auroc(to_unit_range(torch.tensor(scores)), torch.tensor(labels)).item()


def _pixel_auroc(model: openvino.CompiledModel, items: Iterable[Any]) -> float:
    maps, masks = [], []
    for image, batch in items:
        anomaly_map = model(image)["anomaly_map"]
        maps.append(torch.from_numpy(anomaly_map.ravel().copy()))
        masks.append(quality.mask_of(batch, anomaly_map.shape[-2:]).ravel())
    return binary_auroc(to_unit_range(torch.cat(maps)), torch.cat(masks)).item()


def _measure(
    reference: openvino.Model, model: openvino.Model, compression: Compression, resize: Any
) -> dict[str, float] | None:
    """Measure AUROC before and after, and refuse what loses too much."""
    labelled = quality.labelled(compression.datamodule)  # type: ignore[arg-type]  # not None here
    if labelled is None:
        logger.warning("No defective images, so the exported model's AUROC is not measured.")
        return None
    before = quality.auroc(reference, labelled, resize)
    if model is reference:
        return before
    after = quality.auroc(model, labelled, resize)
    measured = after | {f"float_{name}": before[name] for name in before if name != "images"}
    losses = {name: before[name] - after[name] for name in before if name != "images"}
    if max(losses.values()) > compression.max_drop:
        images = [image for image, _ in quality.batches(labelled.subsample(_spread(labelled, _BLAME_IMAGES)), resize)]  # type: ignore[attr-defined]
        layers = ", ".join(f"{name} ({error:.1%})" for name, error in quantize.blame(reference, model, images))
        lost = " and ".join(f"{loss:.4f} of {name.replace('_', ' ')}" for name, loss in losses.items())
        msg = (
            f"Quantisation loses {lost}, more than max_drop={compression.max_drop:g}; the layers that add most error "
            f"are {layers}: use INT8_ACQ, or FP16, or allow a larger max_drop."
        )
        raise QuantizationError(msg)
    return measured


def _spread(dataset: Any, count: int) -> list[int]:
    return sorted(set(np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()))


def _recalibrated(
    post_processor: PostProcessor | None,
    reference: openvino.Model,
    model: openvino.Model,
    datamodule: AnomalibDataModule,
    resize: Any,
) -> PostProcessor | None:
    """Find the thresholds of a quantised model on its own scores of the images that set them.

    Which images these were is told by their scores: in float the same images score the same. Others, of a random split
    or beside a calibration on a folder, may have been trained on.
    """
    if not isinstance(post_processor, NormalCalibratedPostProcessor) or not post_processor.image_scores.numel():
        return post_processor
    found = copy.deepcopy(post_processor)
    exact, compiled = quality.compile_exactly(reference), quality.compile_exactly(model)
    scores = []
    held = getattr(datamodule, "val_data", None)  # none where the thresholds are from a folder
    for images, batch in quality.batches(held, resize) if held is not None else ():
        if not bool(batch.gt_label):
            scores.append(float(exact(images)["pred_score"].item()))
            gather(found, compiled(images), batch.image_path)
    known = np.sort(post_processor.image_scores.cpu().numpy())
    if len(scores) != len(known) or not np.allclose(np.sort(scores), known, rtol=_SAME, atol=0):
        logger.warning("The good validation images are not those that set the thresholds. %s", _FLOAT_THRESHOLDS)
        return post_processor
    found.calibrate()
    return found


def gather(post_processor: NormalCalibratedPostProcessor, result: Any, paths: Sequence[str]) -> None:
    """Hand one image's raw predictions of a compiled graph to a post-processor that is to be calibrated.

    Args:
        post_processor: The post-processor.
        result: What the compiled graph gave.
        paths: Path of the image.
    """
    score, anomaly_map = (torch.from_numpy(result[name].copy()) for name in ("pred_score", "anomaly_map"))
    post_processor.gather(score.flatten(), anomaly_map, list(paths))
