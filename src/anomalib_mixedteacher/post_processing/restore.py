"""Loading a checkpoint into a model that was built with another post-processor."""

from typing import Any

from anomalib.models import AnomalibModule

from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.post_processing.post_processor import SETTINGS, NormalCalibratedPostProcessor

_CALIBRATED = "post_processor.image_scores"
_CONFIG = "anomalib_post_processor_config"


def restore_post_processor(module: AnomalibModule, checkpoint: dict[str, Any]) -> None:
    """Give a model the calibrated post-processor where its checkpoint holds one's state, and keep given sensitivities.

    anomalib keeps no components among a checkpoint's hyper-parameters: ``load_from_checkpoint``, and with it its
    export, builds a model with default ones, which such a state does not fit. And it puts the checkpoint's
    sensitivities, 0.5 unless training was given others, in the place of those that a command was given.

    Args:
        module: A model that is about to be restored.
        checkpoint: The checkpoint; given sensitivities are put into it.

    Raises:
        ConfigurationError: If sensitivities are given to a model that was calibrated for a budget.
    """
    before = module.post_processor
    given = given_sensitivities(before)
    config = checkpoint.get(_CONFIG) or {}
    if _CALIBRATED not in checkpoint["state_dict"]:
        checkpoint[_CONFIG] = config | given
        return
    if given:
        msg = "Sensitivities would move a calibrated model's thresholds off their budget: calibrate it for another one."
        raise ConfigurationError(msg)
    if isinstance(before, NormalCalibratedPostProcessor):
        return
    module.post_processor = NormalCalibratedPostProcessor(**{key: config[key] for key in SETTINGS if key in config})
    if module._trainer is not None:  # which took the callbacks before it restores the checkpoint
        callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
        # without the one of a model that this trainer had before
        others = [c for c in callbacks if not isinstance(c, NormalCalibratedPostProcessor)]
        callbacks[:] = [module.post_processor if callback is before else callback for callback in others]


def given_sensitivities(post_processor: Any) -> dict[str, float]:
    """Give the sensitivities of a post-processor that are not anomalib's default of 0.5, by their names."""
    values = {name: getattr(post_processor, name, 0.5) for name in ("image_sensitivity", "pixel_sensitivity")}
    return {name: float(value) for name, value in values.items() if value != 0.5}
