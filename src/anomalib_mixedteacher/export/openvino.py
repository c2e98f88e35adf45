"""From a trained model to a lean OpenVINO model with its record."""

import logging
import math
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.components.distillation_mixin import STATISTICS_IMAGES
from anomalib_mixedteacher.components.export_mixin import MAX_DROP
from anomalib_mixedteacher.components.standardized_mixin import STATISTICS_TILES
from anomalib_mixedteacher.components.tiles import Tiles
from anomalib_mixedteacher.components.training_data import check_training_images, spread_evenly
from anomalib_mixedteacher.errors import ConfigurationError, QuantizationError
from anomalib_mixedteacher.export import quality
from anomalib_mixedteacher.export.graph import network, resize_of, with_post_processor, with_resize
from anomalib_mixedteacher.post_processing import F1PostProcessor, NormalCalibratedPostProcessor
from mixedteacher_edge.graph import with_thresholds, write_model
from mixedteacher_edge.record import ModelRecord
from mixedteacher_edge.thresholds import Thresholds, part_scores

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
            msg = f"max_drop must be between 0 and 1, a loss of AUROC, not {self.max_drop}."
            raise ConfigurationError(msg)
        if self.kind in {CompressionType.INT8_PTQ, CompressionType.INT8_ACQ} and self.datamodule is None:
            msg = f"Datamodule must be provided for {self.kind.value.upper()}, which needs images (--data)."
            raise ConfigurationError(msg)


def export_openvino(
    module: AnomalibModule,
    path: Path,
    input_size: tuple[int, int] | None,
    compression: Compression,
    onnx_kwargs: dict[str, Any] | None,
) -> Path:
    """Write the files of :meth:`~.components.export_mixin.LeanExport.to_openvino`; give the path."""
    resize, datamodule, tiles = resize_of(module), compression.datamodule, getattr(module, "tiles", None)
    post_processor = module.post_processor if isinstance(module.post_processor, PostProcessor) else None
    thresholds = thresholds_of(post_processor)
    provenance: Any = module.provenance
    if post_processor is not None and thresholds is None:
        logger.warning("The model has no thresholds that scale its scores: calibrate it ('mixedteacher calibrate').")
    reference = network(module, input_size, **(onnx_kwargs or {}))
    model, measured = reference, None
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup(TrainerFn.FITTING)  # a plain string would let every later call split anew
        _warn_of_other_images(datamodule, provenance.get("training_data"))
    if compression.kind is not None:
        model = _compressed(module, reference, compression, resize, tiles, input_size, onnx_kwargs or {})
    if datamodule is not None:
        measured = _measure(reference, model, compression, resize, tiles)
    if model is not reference and thresholds is not None and thresholds.image_scores:
        thresholds = _recalibrated(thresholds, reference, model, datamodule, resize, tiles)
    record = ModelRecord(
        model=module.name,
        version=__version__,
        precision="FP32" if compression.kind is None else compression.kind.value.upper(),
        image_size=(resize.size[0], resize.size[1]) if resize is not None else input_size,
        tile_size=tiles.tiling.size if tiles else None,
        profile=None if tiles is None or tiles.profile is None else tuple(tiles.profile.tolist()),
        quality=measured,
        thresholds=thresholds,
        score_threshold=1 - float(getattr(post_processor, "image_sensitivity", 0.5)),
        **provenance,
    )
    graph = model if resize is None else with_resize(model, input_size)
    if thresholds is not None and thresholds.image_scores:
        graph = with_thresholds(graph, thresholds)
    else:
        graph = with_post_processor(graph, post_processor)
    return write_model(graph, record, path, compression.kind == CompressionType.FP16)


def thresholds_of(post_processor: PostProcessor | None) -> Thresholds | None:
    """Give a post-processor's thresholds; ``None`` where there are none, or scores are not scaled by them."""
    if post_processor is None or not post_processor.enable_normalization:
        return None
    if isinstance(post_processor, NormalCalibratedPostProcessor):
        return post_processor.thresholds
    image, pixel = (_raw_threshold(post_processor, kind) for kind in ("image", "pixel"))
    return Thresholds(image, pixel if np.isfinite(pixel) else None) if np.isfinite(image) else None


def _raw_threshold(post_processor: PostProcessor, kind: str) -> float:
    """Give the raw score that a post-processor, with its sensitivity, takes for the threshold."""
    names = ("threshold", "sensitivity", "min", "max")
    threshold, sensitivity, low, high = (float(getattr(post_processor, f"{kind}_{name}")) for name in names)
    steps = 0.5 - sensitivity  # of anomalib's scale, in parts of the range
    if isinstance(post_processor, F1PostProcessor):
        left = 1 - abs(2 * steps)  # our scale flattens on either side, and ends there
        steps = steps / left if left > 0 else math.copysign(math.inf, steps)
    return threshold + steps * (high - low)


def _warn_of_other_images(datamodule: AnomalibDataModule, known: dict[str, Any] | None) -> None:
    if known and known["sha256"] and known["sha256"] != check_training_images(datamodule.train_data)["sha256"]:
        logger.warning(
            "The datamodule's training images are not those that the model was trained on, so its test images may be; "
            "the recorded AUROC may be too high. Give the same data, and the same --data.seed."
        )


def _compressed(
    module: AnomalibModule,
    model: openvino.Model,
    compression: Compression,
    resize: Any,
    tiles: Tiles | None,
    input_size: tuple[int, int] | None,
    onnx_kwargs: dict[str, Any],
) -> openvino.Model:
    if compression.kind == CompressionType.FP16:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            openvino.save_model(model, path, compress_to_fp16=True)
            return openvino.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    from anomalib_mixedteacher.export import quantize  # imports NNCF, which takes seconds

    if compression.kind == CompressionType.INT8:
        return quantize.nncf.compress_weights(model.clone())
    datamodule: Any = compression.datamodule
    images = _sample(datamodule.train_data, quantize.MAX_IMAGES, resize, tiles)
    good = _sample(datamodule.train_data, STATISTICS_IMAGES, resize, tiles, STATISTICS_TILES)  # training's
    size = tiles.tiling.size if tiles else None
    model = quantize.restandardized(module, model, images, good, compression.keep, size, input_size, **onnx_kwargs)
    if compression.kind == CompressionType.INT8_PTQ:
        return quantize.quantize(model.clone(), images, compression.keep)
    labelled = quality.labelled(datamodule, ("val", "test"))
    if labelled is None:
        msg = "INT8_ACQ watches the AUROC and needs good and defective images: give both, or use INT8_PTQ."
        raise ConfigurationError(msg)
    items, metric = list(quality.batches(labelled, resize)), quality.METRICS[compression.pixel]

    def measure(compiled: openvino.CompiledModel, some: Any) -> float:
        chosen = list(some)
        return quality.auroc(quality.predict(compiled, chosen, [""] * len(chosen), tiles))[metric]

    return quantize.quantize_accurately(model.clone(), images, items, measure, compression.max_drop, compression.keep)


def _sample(
    dataset: Any, count: int, resize: Any, tiles: Tiles | None, tile_count: int | None = None
) -> list[quality.Images]:
    """Give as many images spread evenly, or tiles of them, by default as many."""
    chosen = spread_evenly(len(dataset), count)
    images = [image for image, _ in quality.batches(dataset.subsample(chosen), resize)]
    return images if tiles is None else quality.tiles_of(images, tiles.tiling, -(-(tile_count or count) // len(chosen)))


def _measure(
    reference: openvino.Model, model: openvino.Model, compression: Compression, resize: Any, tiles: Tiles | None
) -> dict[str, float] | None:
    """Measure AUROC before and after, and refuse what loses too much, beyond what so many images leave open."""
    labelled = quality.labelled(compression.datamodule)  # type: ignore[arg-type]  # not None here
    if labelled is None:
        logger.warning("No defective images, so the exported model's AUROC is not measured.")
        return None
    exact = quality.predict_dataset(reference, labelled, resize, tiles)
    before, images = quality.auroc(exact), {"images": float(len(labelled))}
    if model is reference:
        return images | before
    found = quality.predict_dataset(model, labelled, resize, tiles)
    after = quality.auroc(found)
    losses = {name: before[name] - after[name] for name in before}
    if max(losses.values()) > compression.max_drop:
        intervals = quality.least_losses(exact, found)
        lost = " and ".join(
            f"{loss:.4f} of {name.replace('_', ' ')} (95 %: {intervals[name][0]:.4f} to {intervals[name][1]:.4f})"
            for name, loss in losses.items()
        )
        lost = f"Quantisation loses {lost} on {len(labelled)} images, with max_drop={compression.max_drop:g}"
        if max(low for low, _ in intervals.values()) > compression.max_drop:
            layers = _blamed(reference, model, labelled, resize, tiles)
            msg = f"{lost}, mostly by {layers}: use INT8_ACQ, or FP16, or allow a larger max_drop."
            raise QuantizationError(msg)
        logger.warning("%s: too few images to tell; measure it on more of them.", lost)
    return images | after | {f"float_{name}": value for name, value in before.items()}


def _blamed(reference: openvino.Model, model: openvino.Model, labelled: Any, resize: Any, tiles: Tiles | None) -> str:
    from anomalib_mixedteacher.export import quantize

    images = _sample(labelled, _BLAME_IMAGES, resize, tiles)
    return ", ".join(f"{name} ({error:.1%})" for name, error in quantize.blame(reference, model, images))


def _recalibrated(
    thresholds: Thresholds,
    reference: openvino.Model,
    model: openvino.Model,
    datamodule: AnomalibDataModule | None,
    resize: Any,
    tiles: Tiles | None,
) -> Thresholds:
    """Find the thresholds of a compressed model on its own scores of the images that set them.

    Which images these were is told by their scores: in float the same images score the same. Others, of a random split
    or beside a calibration on a folder, may have been trained on.
    """
    assert thresholds.alarm_rate is not None  # they came from good images
    assert thresholds.min_area is not None
    exact, compiled = quality.compile_exactly(reference), quality.compile_exactly(model)
    known: list[float] = []
    found: list[tuple[float, float]] = []
    size = tiles.tiling.size if tiles else None
    judged = partial(part_scores, min_area=thresholds.min_area, per=thresholds.per, tile_size=size)
    held = getattr(datamodule, "val_data", None)
    for images, batch in quality.batches(held, resize) if held is not None else ():
        if not bool(batch.gt_label):
            known += [score for score, _ in judged(*quality.run(exact, images, tiles))]
            found += judged(*quality.run(compiled, images, tiles))
    if len(known) != len(thresholds.image_scores) or not np.allclose(
        np.sort(known), thresholds.image_scores, rtol=_SAME, atol=0
    ):
        logger.warning("The good validation images are not those that set the thresholds. %s", _FLOAT_THRESHOLDS)
        return thresholds
    scores, regions = zip(*found, strict=True)
    return Thresholds.from_good(scores, regions, thresholds.alarm_rate, thresholds.min_area, per=thresholds.per)
