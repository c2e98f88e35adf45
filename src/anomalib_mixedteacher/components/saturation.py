"""Says after training how many epochs would have done."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

logger = logging.getLogger(__name__)

TOLERANCE = 0.01
MIN_VALIDATIONS = 5  # of fewer, the last ones say too little
WORTH_SAYING = 0.8  # of the epochs: what would save less than a fifth is not reported


def saturation_epoch(losses: Mapping[int, float], tolerance: float = TOLERANCE) -> int | None:
    """Find the epoch from which on a loss stays near its best.

    Args:
        losses: Loss by epoch, counted from 1, non-negative.
        tolerance: How far above the best loss still counts as near, as a share of it.

    Returns:
        The first epoch from which on no loss is farther above the best one; ``None`` if there is none, if a loss is not
        finite, or if there are fewer than five.
    """
    if len(losses) < MIN_VALIDATIONS or not all(math.isfinite(loss) for loss in losses.values()):
        return None
    limit = (1 + tolerance) * min(losses.values())
    found = None
    for epoch in sorted(losses, reverse=True):
        if losses[epoch] > limit:
            break
        found = epoch
    return found


class Saturation(Callback):
    """Reports the epoch from which on the loss of the good validation images hardly fell any more."""

    def __init__(self) -> None:
        self._losses: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Give the losses to save, so that a resumed run reports on the whole training."""
        return {"losses": dict(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the losses of a checkpoint."""
        self._losses = dict(state_dict["losses"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch's loss, if there were good validation images."""
        del pl_module
        if "val_loss" in trainer.callback_metrics and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._losses[trainer.current_epoch + 1] = float(trainer.callback_metrics["val_loss"])

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, where a shorter training would have done."""
        del pl_module
        epochs = trainer.current_epoch
        found = saturation_epoch(self._losses)
        if found is not None and found <= WORTH_SAYING * epochs:
            logger.info(
                "Validation loss was within 1 %% of its best from epoch %d of %d on: try max_epochs=%d.",
                found,
                epochs,
                found,
            )
