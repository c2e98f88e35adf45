"""Loading a calibrated checkpoint into a model that was built with another post-processor."""

from typing import Any

from anomalib.models import AnomalibModule

from anomalib_mixedteacher.post_processing.post_processor import SETTINGS, NormalCalibratedPostProcessor

_CALIBRATED = "post_processor.image_scores"


def restore_post_processor(module: AnomalibModule, checkpoint: dict[str, Any]) -> None:
    """Give a model the calibrated post-processor where its checkpoint holds one's state.

    anomalib keeps no components among a checkpoint's hyper-parameters: ``load_from_checkpoint``, and with it its
    export, builds a model with default ones, which such a state does not fit.

    Args:
        module: A model that is about to be restored.
        checkpoint: The checkpoint.
    """
    if _CALIBRATED not in checkpoint["state_dict"] or isinstance(module.post_processor, NormalCalibratedPostProcessor):
        return
    config = checkpoint.get("anomalib_post_processor_config") or {}
    plain = module.post_processor
    module.post_processor = NormalCalibratedPostProcessor(**{key: config[key] for key in SETTINGS if key in config})
    if module._trainer is not None:  # which took the callbacks before it restores the checkpoint
        callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
        # without the one of a model that this trainer had before
        others = [c for c in callbacks if not isinstance(c, NormalCalibratedPostProcessor)]
        callbacks[:] = [module.post_processor if callback is plain else callback for callback in others]
