"""What ``mixedteacher`` prints: what it trains on, one progress bar, what came out, and the next command."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib.models import AnomalibModule
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

_REFRESH = 0.2 if sys.stderr.isatty() else 60.0  # seconds


class TrainingOutput(Callback):
    """Says what is trained, and shows one bar over all steps, with the time left, in place of one for each epoch."""

    def __init__(self, bar: bool = True) -> None:
        self._shows_bar = bar
        self._bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained, and start the bar."""
        if not trainer.is_global_zero:
            return
        data = getattr(trainer, "datamodule", None)
        names = dict.fromkeys([type(data).__name__, getattr(data, "name", ""), getattr(data, "category", "")])
        name = " ".join(filter(None, names)) if data is not None else "the loader's data"
        count = len(trainer.train_dataloader.dataset)  # type: ignore[union-attr]
        teachers = getattr(getattr(pl_module, "model", None), "teachers", None)
        with_teachers = ""
        if teachers is not None:
            backbones = " and ".join(teacher.backbone for teacher in teachers.values())
            with_teachers = f", {pl_module.teacher_weights} teachers {backbones}"
        kind = pl_module.name if isinstance(pl_module, AnomalibModule) else type(pl_module).__name__
        print(f"{kind}{with_teachers}: {count} good images of {name}, {trainer.max_epochs} epochs", file=sys.stderr)
        if self._shows_bar:
            self._bar = tqdm(total=int(trainer.estimated_stepping_batches), desc="Training", mininterval=_REFRESH)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Advance."""
        del args
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the losses of the epoch."""
        del pl_module
        if self._bar is not None:
            losses = {name: trainer.callback_metrics.get(name) for name in ("train_loss", "val_loss")}
            self._bar.set_postfix(
                {name: f"{value:.4g}" for name, value in losses.items() if value is not None}, refresh=False
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the bar."""
        del trainer, pl_module
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def print_results(model: AnomalibModule, results: Mapping[str, float], checkpoint: str | None) -> None:
    """Print what a training gave, whose results are empty without test images, and what to do with it."""
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in results.items())
    print(f"test: {figures or 'no test images'}")
    post_processor: Any = model.post_processor
    if post_processor is not None:
        image, pixel = post_processor.image_threshold.item(), post_processor.pixel_threshold.item()
        known = f"thresholds (raw scores): image {image:.4g}, pixel {pixel:.4g}"
        print("thresholds: none; 'mixedteacher calibrate' sets them from good images" if math.isnan(image) else known)
    if not checkpoint:
        print("checkpoint: none was written")
        return
    print(f"checkpoint: {_shown(Path(checkpoint))}")
    print(f"next: mixedteacher export --export_type openvino --ckpt_path {_shown(Path(checkpoint))}")


def print_export(path: Path) -> None:
    """Print where an exported model is, and what to do with it."""
    print(f"exported: {_shown(path)}")
    if path.suffix == ".xml":
        print(f"next: mixedteacher predict {_shown(path)} IMAGES")


def _shown(path: Path) -> Path:
    """Shorten a path below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
