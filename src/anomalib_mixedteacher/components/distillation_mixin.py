"""What the Lightning modules of every distillation detector share: recipe, validation loss, checkpoints."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning import Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MeanMetric
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.components.distillation_model import DistillationLoss, DistillationModel, Features
from anomalib_mixedteacher.components.export_mixin import LeanExport
from anomalib_mixedteacher.components.pre_processing import IMAGE_SIZE, AntialiasedPreProcessor, check_uncropped
from anomalib_mixedteacher.components.training_data import (
    FeatureCache,
    check_masks,
    check_training_images,
    is_deterministic,
    sample_batches,
)
from anomalib_mixedteacher.components.weights import fingerprint
from anomalib_mixedteacher.decoding import check_bits
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.post_processing import F1PostProcessor, restore_post_processor
from anomalib_mixedteacher.visualization import ImageVisualizer

logger = logging.getLogger(__name__)

STATISTICS_IMAGES = 64  # enough for the moments of a channel, and of a distance at each position
_NO_EPOCHS_GIVEN = 1000  # what Lightning puts in their place


class DistillationMixin(LeanExport):
    """Trains students on good images only; declared as ``class Name(DistillationMixin, AnomalibModule)``.

    A model's ``__init__`` calls ``super().__init__``, sets ``model`` and ``loss``, and calls :meth:`set_recipe`; see
    docs/adding-a-model.md. Adam with a one-cycle schedule trains the students.
    """

    model: DistillationModel
    loss: DistillationLoss

    def set_recipe(self, teacher_weights: str, learning_rate: float, max_epochs: int, feature_cache: int) -> None:
        """Take the recipe; see the models' arguments."""
        self.teacher_weights = self.hparams["teacher_weights"] = teacher_weights
        self.learning_rate, self.max_epochs, self.feature_cache = learning_rate, max_epochs, feature_cache
        self.training_data: dict[str, Any] | None = None
        self._val_loss = MeanMetric()
        self._cache: FeatureCache | None = None

    def setup(self, stage: str) -> None:
        """Apply the model's number of epochs, and lay the students out for the processor.

        Raises:
            ConfigurationError: If the trainer's precision is a pure half or double one, if it synchronises batch
                normalisation, or if the transform crops.
            DataError: If a mask has not the shape of its image.
        """
        if str(self.trainer.precision).endswith("-true") and self.trainer.precision != "32-true":
            msg = f"trainer.precision={self.trainer.precision} does not suit distances: use 32-true or bf16-mixed."
            raise ConfigurationError(msg)
        if getattr(self.trainer.strategy, "_layer_sync", None) is not None:
            msg = "trainer.sync_batchnorm would take the activations out of timm's batch normalisation: leave it out."
            raise ConfigurationError(msg)
        check_uncropped(getattr(self.pre_processor, "transform", None))
        data = "test_data" if stage == "test" else "val_data"
        check_masks(getattr(getattr(self.trainer, "datamodule", None), data, None))
        if stage == "fit" and self.trainer.world_size > 1:
            share_run_folder(self.trainer)
        if stage == "fit" and self.trainer.max_epochs == _NO_EPOCHS_GIVEN:
            logger.info("Training for this model's %d epochs (model.max_epochs).", self.max_epochs)
            self.trainer.fit_loop.max_epochs = self.max_epochs
        if stage == "fit" and self.trainer.strategy.root_device.type == "cpu":  # faster there
            self.model.students.to(memory_format=torch.channels_last)

    def on_train_start(self) -> None:
        """Check schedule and training images, and load the teachers unless a checkpoint brought them.

        Raises:
            ConfigurationError: If a checkpoint to go on from was to be trained for another number of steps.
            DataError: If there are too few training images, or one cannot be used.
            WeightsError: If the teachers' weights cannot be had.
        """
        schedule, steps = self.lr_schedulers(), self.trainer.estimated_stepping_batches
        if isinstance(schedule, OneCycleLR) and schedule.total_steps != steps:
            msg = (
                f"The checkpoint's schedule has {schedule.total_steps} steps, this run {steps}: resume with the same "
                "number of epochs, images and batch size, or train anew."
            )
            raise ConfigurationError(msg)
        dataset: Any = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        self.training_data = check_training_images(dataset)
        self.model.students.train()
        if not self.model.loaded:
            self.model.load_teachers(self.teacher_weights, (images for images, _ in self._good_images()))
        transforms = (getattr(dataset, "augmentations", None), getattr(self.pre_processor, "transform", None))
        self._cache = FeatureCache(self.feature_cache) if all(map(is_deterministic, transforms)) else None

    def on_train_epoch_start(self) -> None:
        """Keep the statistics of batch normalisation from the second epoch on, as MixedTeacher's official code does.

        Where features hardly vary, students whose statistics follow each batch give wild features for single images.
        """
        for module in self.model.students.modules():
            if self.current_epoch > 0 and isinstance(module, nn.BatchNorm2d):
                module.eval()

    def on_fit_end(self) -> None:
        """Release the teachers' features, and lay the students out as restored ones are: they agree to the last bit."""
        self._cache = None
        self.model.students.to(memory_format=torch.contiguous_format)

    def features(self, images: torch.Tensor, paths: Sequence[str] | None) -> tuple[Features, Features]:
        """Compute the features of teachers and students; in training, teachers see an image once.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.
            paths: Their files, if they come from files.
        """
        self.model.check_size(images)
        if self._cache is not None and paths:
            teacher = self._cache.features(images, paths, self.model.teacher_features)
        else:
            teacher = self.model.teacher_features(images)
        return teacher, self.model.student_features(images)

    def training_images(self, batch: Any) -> tuple[torch.Tensor, Sequence[str] | None]:
        """Give the images that a training step sees, and by which names the cache knows them."""
        return batch.image, batch.image_path

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Compute the loss of a batch of good images."""
        del args, kwargs
        loss = self.loss(*self.features(*self.training_images(batch)))
        self.log("train_loss", loss.detach(), on_epoch=True, prog_bar=True, batch_size=len(batch.image), sync_dist=True)
        return {"loss": loss}

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict, and log the loss of the good images; it is NaN where there are none."""
        del args, kwargs
        prediction, losses = self.predict_images(batch.image, batch.image_path)
        good = torch.eq(torch.as_tensor(batch.gt_label), 0).float()
        self._val_loss.update(losses, weight=good)
        self.log("val_loss", self._val_loss, on_epoch=True, prog_bar=True, batch_size=len(batch.image))
        return batch.update(**prediction._asdict())

    def predict_images(self, images: torch.Tensor, paths: Sequence[str] | None) -> tuple[InferenceBatch, torch.Tensor]:
        """Give predictions, not normalised, and the loss ``(B,)`` of each image; see :meth:`features`."""
        teacher, student = self.features(images, paths)
        return self.model.predict(teacher, student, images), self.loss.per_image(teacher, student)

    def good_features(self) -> Iterator[tuple[Features, Features]]:
        """Compute the features of a sample of the training images, one batch after another."""
        return (self.features(*batch) for batch in self._good_images())

    def _good_images(
        self, at_once: int = 16, count: int = STATISTICS_IMAGES
    ) -> Iterator[tuple[torch.Tensor, Sequence[str] | None]]:
        transform = getattr(self.pre_processor, "transform", None) or nn.Identity()
        loader: Any = self.trainer.train_dataloader
        return (
            (transform(batch.image.to(self.device)), batch.image_path)
            for batch in sample_batches(loader, count, at_once)
        )

    def configure_optimizers(self) -> Any:
        """Configure Adam with a one-cycle schedule over all steps, with a peak of ten times the ``learning_rate``.

        Raises:
            ConfigurationError: If the number of steps is unlimited.
        """
        if (steps := self.trainer.estimated_stepping_batches) == float("inf"):
            msg = "The one-cycle schedule needs an end: give trainer.max_epochs or trainer.max_steps."
            raise ConfigurationError(msg)
        optimizer = Adam(self.model.students.parameters(), lr=self.learning_rate)
        scheduler = OneCycleLR(optimizer, max_lr=10 * self.learning_rate, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = IMAGE_SIZE) -> PreProcessor:
        """Configure antialiased resize and ImageNet normalisation, equal in training and in the exported graph.

        Args:
            image_size: Height and width in pixels; ``None`` for no resize.
        """
        resize = [] if image_size is None else [Resize(tuple(image_size), antialias=True)]
        normalize = Normalize(mean=list(IMAGENET_DEFAULT_MEAN), std=list(IMAGENET_DEFAULT_STD))
        return AntialiasedPreProcessor(Compose([*resize, normalize]))

    def configure_post_processor(self) -> PostProcessor:
        """Configure thresholds by the best F1 on labelled validation images."""
        return F1PostProcessor()

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """Configure result pictures of the images as they were read."""
        return ImageVisualizer()

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No validation before the teachers are loaded."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """The model learns from good images only."""
        return LearningType.ONE_CLASS

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from: teacher weights, their fingerprints, and the training images."""
        teachers = self.model.teachers.values()
        return {
            "teacher_weights": self.teacher_weights,
            "fingerprints": {teacher.backbone: fingerprint(teacher.state_dict()) for teacher in teachers},
            "training_data": self.training_data,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which model this is, and where it comes from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["anomalib_mixedteacher"] = {"version": __version__, "model": self.name, **self.provenance}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what this model did not train, and let data sets resize as the checkpoint's pre-processor does.

        Raises:
            ConfigurationError: If the checkpoint is another model's, or its networks have other arguments.
        """
        record = checkpoint.get("anomalib_mixedteacher", {})
        if record.get("model") != self.name:
            msg = f"This checkpoint is not a {self.name}'s: give one that {self.name} trained."
            raise ConfigurationError(msg)
        restore_post_processor(self, checkpoint)
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["hyper_parameters"]
        names = [name for name in inspect.signature(type(self.model)).parameters if name in saved]
        if other := [f"{name}={saved[name]}" for name in names if _plain(saved[name]) != _plain(self.hparams[name])]:
            msg = f"This checkpoint was trained with {', '.join(other)}: build the model with the same arguments."
            raise ConfigurationError(msg)
        self.teacher_weights = self.hparams["teacher_weights"] = record["teacher_weights"]
        self.training_data = record["training_data"]
        check_bits(self.training_data)
        if (datamodule := getattr(self._trainer, "datamodule", None)) is not None:
            datamodule.setup(self.trainer.state.fn)


def _plain(value: Any) -> Any:
    """Make a tuple and the list that it becomes on the way through a file compare equal."""
    return list(value) if isinstance(value, tuple) else value


def share_run_folder(trainer: Trainer) -> None:
    """Let all write to the first process's folder, in which the checkpoint will be, and ``latest`` be that one.

    With the strategy ``ddp`` each process runs the whole program, and anomalib's Engine makes a new folder in each.
    It ends when the Engine does so in one of them.
    """
    folder = Path(trainer.default_root_dir)
    first = Path(trainer.strategy.broadcast(str(folder)))
    latest = folder.parent / "latest"
    if folder != first:
        with suppress(OSError):  # somebody else's files are in it
            folder.rmdir()
        trainer._default_root_dir = str(first)  # type: ignore[attr-defined]  # heat maps go there too
    elif trainer.is_global_zero and latest.is_symlink() and latest.resolve() != folder.resolve():
        latest.unlink()
        latest.symlink_to(folder, target_is_directory=True)
