"""What a resumed run needs besides weights, optimiser and schedule, which Lightning restores."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class ResumedOrder(Callback):
    """Shows the images of a resumed run in the order in which the uninterrupted run would have shown them.

    Lightning saves no state of the random generator, and asks the data loader for the first epoch's order before
    training begins: by itself a resumed run repeats the order of the very first epoch. This keeps the generator's state
    in checkpoints, and asks for the order again.

    It holds for checkpoints of complete epochs, and for what draws from torch's generator of the CPU, as shuffling and
    torchvision's augmentations do.
    """

    def __init__(self) -> None:
        self._state: torch.Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Give the state to save."""
        return {"random_state": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self._state = state_dict["random_state"].cpu()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a resumed run's first complete epoch as it would have begun."""
        del pl_module
        if self._state is None:
            return
        torch.set_rng_state(self._state)
        self._state = None
        # else Lightning is about to do so, as in the middle of any run
        if getattr(trainer.fit_loop, "is_resuming", False):  # older versions have no such attribute
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]  # set up by now

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forget the state where training goes on within an epoch, whose order is lost."""
        del trainer, pl_module, batch, batch_idx
        self._state = None
