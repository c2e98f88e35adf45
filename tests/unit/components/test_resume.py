"""The order of images in a resumed run."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from anomalib_mixedteacher.components.resume import ResumedOrder

IMAGES, BATCH, EPOCHS = 7, 3, 5


class StopError(Exception):
    pass


class Stop(Callback):
    """Ends a run within an epoch, as a killed process would; nothing is saved."""

    def __init__(self, epoch: int | None) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise StopError


class Recorder(lightning.LightningModule):
    """Notes what it sees in each epoch, and draws at random on the way, as dropout would."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[int, list[float]] = {}

    def on_train_start(self):
        torch.rand(3)  # whatever is prepared when training starts

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).extend([*batch[0].flatten().tolist(), torch.rand(()).item()])
        return self.layer(batch[0]).sum()

    def validation_step(self, batch, batch_idx):
        torch.rand(3)

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0  # Lightning makes the first epoch's iterator here
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("validation", "every"), [(True, 1), (True, 2), (False, 1)])
def test_a_resumed_run_goes_on_in_the_order_of_the_whole_one(tmp_path, validation, every):
    images = TensorDataset(torch.arange(float(IMAGES))[:, None])

    def run(name: str, stop: int | None = None, checkpoint: str | None = None) -> tuple[Recorder, str]:
        torch.manual_seed(0)
        module, saver = Recorder(), ModelCheckpoint(tmp_path / name)
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            callbacks=[Stop(stop), ResumedOrder(), saver],
            check_val_every_n_epoch=every,
            num_sanity_val_steps=0,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(images, BATCH, shuffle=True)
        held_out = DataLoader(images, BATCH) if validation else None
        try:
            trainer.fit(module, loader, held_out, ckpt_path=checkpoint)
        except StopError:
            assert stop is not None
        return module, saver.best_model_path

    whole, _ = run("whole")
    assert len({tuple(seen) for seen in whole.seen.values()}) == EPOCHS  # each epoch has an order of its own
    killed, checkpoint = run("killed", stop=3)
    assert all(killed.seen[epoch] == whole.seen[epoch] for epoch in range(3))
    torch.manual_seed(99)  # another process
    resumed, _ = run("resumed", checkpoint=checkpoint)
    expected = range(2, EPOCHS) if every == 2 else range(3, EPOCHS)
    assert resumed.seen == {epoch: whole.seen[epoch] for epoch in expected}
