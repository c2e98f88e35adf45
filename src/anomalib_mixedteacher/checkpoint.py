"""Checkpoints: read without knowing which of the package's models they hold, and calibrated anew without training."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor

from anomalib_mixedteacher import plugin
from anomalib_mixedteacher.decoding import read_image
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.post_processing import NormalCalibratedPostProcessor
from mixedteacher_edge.calibrate import Calibrated, check_output, good_images, writing
from mixedteacher_edge.thresholds import Unit


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the checkpoint of one of the package's models.

    Args:
        path: A checkpoint that anomalib's Engine wrote.

    Returns:
        Its content.

    Raises:
        ConfigurationError: If there is none, it is damaged, or it is another package's model.
    """
    if not path.is_file():
        msg = f"There is no checkpoint {path}: give the .ckpt file that training wrote."
        raise ConfigurationError(msg)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        msg = f"{path} is no checkpoint of anomalib's, or a damaged one: give the .ckpt file that training wrote."
        raise ConfigurationError(msg) from error
    if not isinstance(content, dict) or content.get("anomalib_mixedteacher", {}).get("model") not in plugin.MODELS:
        msg = f"{path} is not a checkpoint of {', '.join(plugin.MODELS)}: give one that such a model trained."
        raise ConfigurationError(msg)
    return content


def load_model(path: Path) -> AnomalibModule:
    """Restore the model of a checkpoint on the CPU.

    Args:
        path: A checkpoint that anomalib's Engine wrote.

    Returns:
        The model.

    Raises:
        ConfigurationError: If there is none, it is damaged, or it is another package's model.
    """
    model_class: Any = plugin.public(read_checkpoint(path)["anomalib_mixedteacher"]["model"])
    return cast("AnomalibModule", model_class.load_from_checkpoint(path, map_location="cpu"))


def calibrate_checkpoint(
    checkpoint: Path, good: Path, output: Path, alarm_rate: float, min_area: int = 16, per: Unit = "image"
) -> Calibrated:
    """Calibrate a checkpoint on a folder of good images that it was not trained on, and write it anew.

    Args:
        checkpoint: A checkpoint that anomalib's Engine wrote.
        good: Folder of good images.
        output: The calibrated checkpoint to write.
        alarm_rate: Share of good images that may raise an alarm.
        min_area: Pixels of the anomaly map from which a region counts; see :class:`NormalCalibratedPostProcessor`.
        per: What the budget counts, likewise.

    Returns:
        The thresholds, and the images among the good ones that do not look good.

    Raises:
        CalibrationError: If the images are too few for the budget, or the output cannot be written.
        ConfigurationError: If the checkpoint is not one of the package's models.
        DataError: If an image cannot be read.
    """
    processor = NormalCalibratedPostProcessor(alarm_rate=alarm_rate, min_area=min_area, per=per)
    content = read_checkpoint(checkpoint)
    check_output(output)
    module = load_model(checkpoint)
    _score(module, good_images(good), processor)
    named = processor.calibrate(strict=True)
    thresholds = processor.thresholds
    assert thresholds is not None  # calibrate finds them or raises
    state = {key: value for key, value in content["state_dict"].items() if not key.startswith("post_processor.")}
    content["state_dict"] = state | {f"post_processor.{key}": value for key, value in processor.state_dict().items()}
    # Lightning saves a callback's state as well, and restores it after the model's.
    callbacks = content.get("callbacks", {}).items()
    content["callbacks"] = {key: value for key, value in callbacks if "PostProcessor" not in key}
    content["anomalib_post_processor_config"] = processor.checkpoint_config()
    content.setdefault("anomalib_components_enabled", {})["post_processor"] = True
    temporary = output.with_name(f".{output.name}.tmp")
    with writing(output):
        try:
            torch.save(content, temporary)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
    return thresholds, named


@torch.no_grad()
def _score(module: AnomalibModule, paths: Sequence[Path], processor: NormalCalibratedPostProcessor) -> None:
    module.eval()
    # as in training; anomalib's own pre-processors resize otherwise in their forward, which is for export
    transform = module.pre_processor.transform if isinstance(module.pre_processor, PreProcessor) else None
    tile_size = getattr(module.model, "tile_size", None)
    for path in paths:
        image = read_image(path, as_tensor=True).unsqueeze(0)
        prediction: Any = module.model(transform(image) if transform is not None else image)
        processor.gather(prediction.pred_score.flatten(), prediction.anomaly_map, [str(path)], tile_size)
