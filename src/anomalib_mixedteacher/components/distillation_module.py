"""What the Lightning modules of every distillation detector share: the recipe, checks, checkpoints and export."""

import inspect
import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, Batch
from anomalib.engine.plugins import AnomalibCheckpointIO
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRSchedulerConfig
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.components.cached_teachers import CachedTeachers, cached_teachers, digest_files
from anomalib_mixedteacher.components.checkpoint_file import WholeCheckpointIO
from anomalib_mixedteacher.components.distillation_export import DistillationExport
from anomalib_mixedteacher.components.distillation_loss import DistillationLoss
from anomalib_mixedteacher.components.distillation_model import DistillationModel, Features
from anomalib_mixedteacher.components.heap import KeptHeap
from anomalib_mixedteacher.components.kept_images import KeptData, keep_images
from anomalib_mixedteacher.components.pre_processing import AntialiasedPreProcessor, default_transform
from anomalib_mixedteacher.components.resume import ResumedOrder
from anomalib_mixedteacher.components.saturation import Saturation
from anomalib_mixedteacher.components.speedups import (
    adapt_restored,
    is_asynchronous,
    slow_down,
    speed_up,
    students_context,
    suits_channels_last,
    suits_fused_adam,
)
from anomalib_mixedteacher.components.teacher import freeze_normalization_statistics
from anomalib_mixedteacher.components.training_data import check_training_data, sample_batches, training_fingerprint
from anomalib_mixedteacher.components.weights import fingerprint
from anomalib_mixedteacher.decoding import check_file_size
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.plugin import MODELS
from anomalib_mixedteacher.post_processing.restore import restore_post_processor

logger = logging.getLogger(__name__)

STATISTICS_IMAGES = 64  # enough for the moments of a teacher's channels, and of distances position by position
PROVISIONAL_IMAGES = 16  # enough where a statistic is a mean over all positions, or another epoch follows

# get_model finds direct subclasses of AnomalibModule only: a model lists this class, and AnomalibModule behind it.
if TYPE_CHECKING:
    _Base = AnomalibModule
else:
    _Base = object


class DistillationModule(DistillationExport, _Base):
    """Mixin for detectors that distil frozen teachers into students on good images only.

    A model is declared as ``class Name(DistillationModule, AnomalibModule)``. Its ``__init__`` takes the arguments of
    its networks by the same names, calls ``super().__init__`` with the four anomalib components, and then
    :meth:`build`. Adam with a one-cycle schedule trains the students; a model with another recipe overrides
    :meth:`configure_optimizers`. See docs/adding-a-model.md.
    """

    image_size: ClassVar[tuple[int, int]] = (256, 256)
    """Height and width of the model's input, unless the user gives a pre-processor."""

    model: DistillationModel
    loss: DistillationLoss

    def build(
        self,
        model: DistillationModel,
        teacher_weights: str | Path,
        learning_rate: float,
        max_epochs: int,
        early_stopping_patience: int | None,
        feature_cache: int,
        compile_students: bool = False,
        freeze_bn_after_first_epoch: bool = False,
    ) -> None:
        """Take the networks and the recipe.

        Args:
            model: The networks; where there is a checkpoint, they are built anew from its arguments if these differ.
            teacher_weights: Where the teachers' weights come from when training starts.
            learning_rate: The recipe's learning rate.
            max_epochs: Epochs to train where the trainer is given no limit.
            early_stopping_patience: Stop after this many validations without a lower loss on the good validation
                images; ``None`` never stops early.
            feature_cache: Memory in MiB for decoded images, which take up to a half of it, and for the teachers'
                features, for which from there on a file is used; 0 keeps none.
            compile_students: Compile the students for training, by ``torch.compile``.
            freeze_bn_after_first_epoch: Keep the students' batch-normalisation statistics from the second epoch on.

        Raises:
            ConfigurationError: If ``feature_cache`` is negative.
        """
        if feature_cache < 0:
            msg = f"feature_cache is {feature_cache}: give MiB of memory, or 0 for no cache."
            raise ConfigurationError(msg)
        # as text: a checkpoint with another object in it is refused
        self.teacher_weights = self.hparams["teacher_weights"] = str(teacher_weights)
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.early_stopping_patience = early_stopping_patience
        self.model = model
        self.loss = self.configure_loss()
        self._val_loss = MeanMetric()
        self.feature_cache = feature_cache
        self.compile_students = compile_students
        self.freeze_bn_after_first_epoch = freeze_bn_after_first_epoch
        self._channels_last = False
        self._compiled = False
        self._training_data: dict[str, Any] | None = None
        self._cached_teachers: CachedTeachers | None = None
        self._kept_images: KeptData | None = None
        self._limits_before: dict[str, Any] = {}

    @abstractmethod
    def configure_loss(self) -> DistillationLoss:
        """Make the loss that goes with the networks; also called when a checkpoint has brought others."""

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The hyper-parameters that make the networks what they are."""
        return {name: self.hparams[name] for name in inspect.signature(type(self.model)).parameters}

    @property
    def trainer(self) -> Trainer:
        """The trainer; where it was given no limit, ``max_epochs`` becomes its limit when it begins to fit.

        That is in the property, since no hook comes before Lightning puts 1000 epochs where none were given.
        """
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]  # it is a property
        if trainer is None or trainer.state.fn != "fit":
            return
        loop, callbacks = trainer.fit_loop, trainer.callbacks  # type: ignore[attr-defined]
        timed = any(isinstance(callback, Timer) for callback in callbacks)
        if loop.max_epochs is None and loop.max_steps == -1 and not timed:
            logger.info("No trainer.max_epochs given: training for this model's %d epochs.", self.max_epochs)
            loop.max_epochs = self.max_epochs

    def setup(self, stage: str) -> None:
        """Prepare students and images for training, without validation where there are no images for it.

        Raises:
            ConfigurationError: If the trainer's precision is a pure half precision, or it exchanges the statistics of
                batch normalisation between devices.
        """
        precision, strategy = str(self.trainer.precision), self.trainer.strategy
        if precision in {"16-true", "bf16-true"}:
            msg = f"trainer.precision={precision} is too coarse: use 16-mixed or bf16-mixed instead."
            raise ConfigurationError(msg)
        if precision == "64-true":
            msg = "trainer.precision=64-true would cost twice the time and find nothing more: use 32-true instead."
            raise ConfigurationError(msg)
        if stage != "fit":
            return
        if getattr(strategy, "_layer_sync", None) is not None:
            msg = "trainer.sync_batchnorm would replace layers that the networks and their export need: leave it out."
            raise ConfigurationError(msg)
        if type(strategy.checkpoint_io) is AnomalibCheckpointIO:  # not one of the user's
            strategy.checkpoint_io = WholeCheckpointIO(strategy.checkpoint_io.extra_safe_globals)
        self._channels_last = suits_channels_last(strategy.root_device, precision)
        self._compiled = self.compile_students
        speed_up(self.model.students, self._channels_last, self._compiled)
        self._skip_missing_validation()
        self._keep_images()

    def on_train_start(self) -> None:
        """Check the training images, then load the teachers unless a checkpoint brought them."""
        scheduler = self.lr_schedulers()
        steps = int(self.trainer.estimated_stepping_batches)
        if isinstance(scheduler, OneCycleLR) and scheduler.total_steps != steps:
            msg = (
                f"The checkpoint's schedule has {scheduler.total_steps} steps, this run {steps}: resume with the same "
                "data, batch size and trainer.max_epochs, or start without ckpt_path."
            )
            raise ConfigurationError(msg)
        for optimizer in self.trainer.optimizers:
            adapt_restored(optimizer)
        self.model.students.train()  # an earlier training left batch normalisation frozen
        self.release_features()
        dataset = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        digests = check_training_data(dataset)
        self._training_data = training_fingerprint(dataset, digests)
        if not self.model.teachers_loaded:
            self.model.load_teachers(self.teacher_weights)
            if self.teacher_weights == "random":
                images = torch.cat([images for images, _ in self._good_images(STATISTICS_IMAGES)])
                for teacher in self.model.teachers.values():
                    teacher.set_normalization_statistics(images)
        if self.feature_cache and (self._transform is not None or not self.pre_processor):
            transforms = [getattr(dataset, "augmentations", None), self._transform]
            taken = self._kept_images.size / 2**20 if self._kept_images else 0
            self._cached_teachers = cached_teachers(
                self.model,
                digests | self._validation_digests(),
                transforms,
                self.feature_cache - taken,
                version=__version__,
                precision=str(self.trainer.precision),
            )

    def on_train_epoch_start(self) -> None:
        """Freeze batch normalisation where asked for."""
        if self.freeze_bn_after_first_epoch and self.current_epoch > 0:
            freeze_normalization_statistics(self.model.students)

    def on_train_end(self) -> None:
        """Release the teachers' features."""
        if self._cached_teachers is not None:
            self._cached_teachers.check()
        self.release_features()

    def teardown(self, stage: str) -> None:
        """Leave the students and the datamodule as they were."""
        del stage
        self.undo_setup()

    def undo_setup(self) -> None:
        """Take back what :meth:`setup` did to the students and the datamodule."""
        if self._channels_last or self._compiled:
            slow_down(self.model.students)
        self._channels_last = self._compiled = False
        self._release_images()
        if self._limits_before:
            vars(self.trainer).update(self._limits_before)
        self._limits_before = {}

    def _skip_missing_validation(self) -> None:
        """Train without validation where neither the datamodule nor a post-processor has images for it.

        Callbacks, the post-processor among them, are set up before the module.
        """
        if self._datamodule is None or hasattr(self._datamodule, "val_data"):
            return
        logger.info("There are no validation images: the last epoch is kept, without thresholds.")
        # Lightning leaves checkpoints to validations unless one was due in each epoch.
        without = {"limit_val_batches": 0, "check_val_every_n_epoch": 1}
        self._limits_before = {name: getattr(self.trainer, name) for name in without}
        vars(self.trainer).update(without)

    def _keep_images(self) -> None:
        if self.feature_cache and self._datamodule is not None:
            self._kept_images = keep_images(self._datamodule, self.feature_cache * 2**20 // 2)

    def _release_images(self) -> None:
        if self._kept_images is not None:
            self._kept_images.release()
        self._kept_images = None

    def release_features(self) -> None:
        """Release the memory or the file with the teachers' features."""
        if self._cached_teachers is not None:
            self._cached_teachers.close()
        self._cached_teachers = None

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Compute each student's loss; the optimiser steps on their sum.

        Args:
            batch: Good images.
            args: Unused.
            kwargs: Unused.

        Returns:
            Dictionary with the scalar ``loss``.
        """
        del args, kwargs
        images = cast("torch.Tensor", batch.image)
        losses = self.loss(*self.both_features(images, _paths(batch)))
        loss = torch.stack(list(losses.values())).sum()
        if len(losses) > 1:
            parts = {f"train_loss_{name}": value.detach() for name, value in losses.items()}
            self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        # the progress bar reads what it shows after each step
        shown = not is_asynchronous(self.device)
        arguments: dict[str, Any] = {"batch_size": len(images), "prog_bar": shown, "sync_dist": True}
        self.log("train_loss", loss.detach(), on_step=True, on_epoch=True, **arguments)
        return {"loss": loss}

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict, and gather the loss of the good images.

        Args:
            batch: Validation images.
            args: Unused.
            kwargs: Unused.

        Returns:
            The batch with predictions.
        """
        del args, kwargs
        images = cast("torch.Tensor", batch.image)
        teacher, student = self.both_features(images, _paths(batch))
        loss = torch.stack(list(self.loss.per_image(teacher, student).values())).sum(dim=0)
        good = torch.eq(cast("torch.Tensor", batch.gt_label), 0)
        self._val_loss.update(loss, weight=good.to(loss.dtype))
        with students_context(self._compiled):  # a prediction may compute students anew
            return batch.update(**self.model.predict(teacher, student, images)._asdict())

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation has gathered."""
        self._val_loss.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the loss of the good validation images, if there were any."""
        loss = self._val_loss.compute()
        if not loss.isnan():
            self.log("val_loss", loss, prog_bar=True, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Predict a batch; see anomalib's ``AnomalibModule.predict_step``.

        Raises:
            DataError: If an image file has a side below 32 pixels; the resize of the pre-processor hides it otherwise.
        """
        for path in filter(os.path.isfile, _paths(batch) or ()):  # a frame in memory may have any name
            check_file_size(path)
        return super().predict_step(batch, batch_idx, dataloader_idx)

    def configure_optimizers(self) -> Any:
        """Configure Adam with a one-cycle schedule over the trainer's real number of steps.

        Returns:
            One optimiser for all students and its schedule, stepped with every batch, with a peak of ten times the
            ``learning_rate``.

        Raises:
            ConfigurationError: If the number of steps is unlimited.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            msg = "The one-cycle schedule needs an end: give trainer.max_epochs or trainer.max_steps."
            raise ConfigurationError(msg)
        optimizer = self.configure_adam()
        scheduler = OneCycleLR(optimizer, max_lr=10 * self.learning_rate, total_steps=int(steps))
        config: OptimizerLRSchedulerConfig = {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
        return config

    def configure_adam(self) -> Adam:
        """Make Adam for all students, with the recipe's learning rate, in the form that is fastest where they are."""
        fused = suits_fused_adam(self.trainer.strategy.root_device, str(self.trainer.precision))
        return Adam(self.model.students.parameters(), lr=self.learning_rate, fused=fused or None)

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add to anomalib's callbacks what resumes and ends training, by the good validation images' loss.

        An ``EarlyStopping`` of the user's stays: Lightning would take it out for one of the model's.
        """
        callbacks = [*cast("Sequence[Callback]", super().configure_callbacks())]
        callbacks += [_Release(), ResumedOrder(), Saturation(), KeptHeap()]
        others = self._trainer.callbacks if self._trainer else []  # type: ignore[attr-defined]
        stops = any(isinstance(callback, EarlyStopping) and not isinstance(callback, _OwnStop) for callback in others)
        if self.early_stopping_patience is not None and not stops:
            # not strict: without good validation images there is no such loss
            patience = self.early_stopping_patience
            callbacks.append(_OwnStop("val_loss", patience=patience, mode="min", strict=False))
        return callbacks

    @classmethod
    def configure_pre_processor(cls, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Configure resize and ImageNet normalisation, equal in training and in the exported graph.

        Args:
            image_size: Height and width of the model's input; the class's ``image_size`` by default.

        Returns:
            The pre-processor.
        """
        return AntialiasedPreProcessor(default_transform(image_size or cls.image_size))

    def configure_post_processor(self) -> PostProcessor:
        """Configure anomalib's own post-processor."""
        return PostProcessor()

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments the trainer needs: no validation before the teachers are loaded."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """The model learns from good images only."""
        return LearningType.ONE_CLASS

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which model this is and which teacher weights the checkpoint holds."""
        super().on_save_checkpoint(checkpoint)
        about = {"version": __version__, "model": _public_name(type(self))}
        checkpoint["anomalib_mixedteacher"] = about | self.provenance
        state = checkpoint["state_dict"]  # in the usual order of memory, whatever training used
        checkpoint["state_dict"] = {name: value.contiguous() for name, value in state.items()}

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from: teacher weights, their fingerprints, and the training images."""
        nets = {teacher.backbone: teacher.extractor.net for teacher in self.model.teachers.values()}
        return {
            "teacher_weights": self.teacher_weights,
            "fingerprints": {backbone: fingerprint(net.state_dict()) for backbone, net in nets.items()},
            "training_data": self._training_data,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the networks' arguments from the checkpoint, and let the data sets resize to its size.

        On the command line a checkpoint is loaded into a model built from that command's arguments. Without this, a
        forgotten ``--model.fusion`` would silently combine one fusion's maps with another's thresholds.

        Raises:
            ConfigurationError: If the checkpoint is another model's.
        """
        restore_post_processor(self, checkpoint)
        before = self._pre_processing
        super().on_load_checkpoint(checkpoint)
        name = _public_name(type(self))
        if model_name(checkpoint) != name:
            msg = f"This checkpoint is not a {name}'s: give one that {name} trained."
            raise ConfigurationError(msg)
        record = checkpoint["anomalib_mixedteacher"]
        self.teacher_weights = self.hparams["teacher_weights"] = record["teacher_weights"]
        self._training_data = record.get("training_data")
        saved = {name: checkpoint["hyper_parameters"].get(name, value) for name, value in self.model_arguments.items()}
        differing = [name for name, value in self.model_arguments.items() if _plain(saved[name]) != _plain(value)]
        if differing:
            logger.warning("Using the checkpoint's %s.", ", ".join(f"{name}={saved[name]}" for name in differing))
            self.hparams.update(saved)
            self.model = type(self.model)(**saved)
            self.loss = self.configure_loss()
            speed_up(self.model.students, self._channels_last, self._compiled)
        if self._pre_processing != before:
            self._renew_augmentations()

    def _renew_augmentations(self) -> None:
        """Let data sets resize to the model's size, which they took from the model as it was before the checkpoint."""
        if self._datamodule is None:
            return
        self._release_images()
        self._datamodule._update_augmentations()
        if self.trainer.state.fn == "fit":
            self._keep_images()

    def teacher_features(self, images: torch.Tensor, paths: Sequence[str] | None) -> dict[str, list[torch.Tensor]]:
        """Give the teachers' features, in training from the second time on without the teachers.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.
            paths: Their files, if they come from files.

        Returns:
            Feature maps by teacher name.
        """
        if self._cached_teachers is None:
            return self.model.teacher_features(images)
        return self._cached_teachers.features(images, paths)

    def both_features(self, images: torch.Tensor, paths: Sequence[str] | None) -> tuple[Features, Features]:
        """Give the teachers' features as :meth:`teacher_features` does, and the students'."""
        self.model.check_size(images)  # teachers whose features are kept do not see them
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        teacher = self.teacher_features(images, paths)
        with students_context(self._compiled):
            return teacher, self.model.student_features(images)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the teachers' features and the images out of copies and pickles."""
        return {**super().__getstate__(), "_cached_teachers": None, "_kept_images": None}

    def good_features(self, count: int) -> Iterator[tuple[Features, Features]]:
        """Compute features of a sample of the training images.

        Args:
            count: Number of images at most.

        Yields:
            The teachers' and the students' feature maps of one batch after another, of the same images at each call.
        """
        for images, paths in self._good_images(count):
            yield self.both_features(images, paths)

    def _good_images(self, count: int) -> Iterator[tuple[torch.Tensor, Sequence[str] | None]]:
        for batch in sample_batches(cast("DataLoader", self.trainer.train_dataloader), count):
            images = batch.image.to(self.device)
            yield self._transform(images) if self._transform else images, _paths(batch)

    @property
    def may_end_here(self) -> bool:
        """Whether this epoch may be the training's last one, as far as can be known when it ends."""
        trainer = self.trainer
        callbacks = cast("list[Callback]", trainer.callbacks)  # type: ignore[attr-defined]
        open_end = trainer.max_steps > 0 or any(isinstance(c, Timer) or _may_stop(c) for c in callbacks)
        return open_end or not 0 <= self.current_epoch + 1 < (trainer.max_epochs or 0)

    @property
    def _datamodule(self) -> AnomalibDataModule | None:
        datamodule = getattr(self._trainer, "datamodule", None)
        return datamodule if isinstance(datamodule, AnomalibDataModule) else None

    @property
    def _pre_processing(self) -> dict[str, Any] | None:
        return self.pre_processor.checkpoint_config() if isinstance(self.pre_processor, PreProcessor) else None

    @property
    def _transform(self) -> Any:
        return self.pre_processor.transform if isinstance(self.pre_processor, PreProcessor) else None

    def _validation_digests(self) -> dict[str, str]:
        """Digests of the validation images, where these go through what the training images go through."""
        dataset: Any = getattr(self.trainer.val_dataloaders, "dataset", None)
        if not self.trainer.enable_validation:
            return {}
        if dataset is None:  # validation begins in a later epoch
            dataset = getattr(getattr(self.trainer, "datamodule", None), "val_data", None)
        ours = getattr(self.trainer.train_dataloader.dataset, "augmentations", None)  # type: ignore[union-attr]
        if repr(getattr(dataset, "augmentations", None)) != repr(ours) or not hasattr(dataset, "samples"):
            return {}
        return digest_files(list(dataset.samples.image_path))


def _may_stop(callback: Callback) -> bool:
    """Whether the next validation may end the training."""
    if not isinstance(callback, EarlyStopping):
        return False
    limits = (callback.stopping_threshold, callback.divergence_threshold)
    return callback.wait_count + 1 >= callback.patience or any(limit is not None for limit in limits)


class _OwnStop(EarlyStopping):
    """The model's early stopping, to be told from one of the user's; its state is called the same in checkpoints."""

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)


class _Release(Callback):
    """Takes training's preparations back where it ends in an exception, for which modules have no hook."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, exception
        module = cast("DistillationModule", pl_module)
        module.release_features()
        module.undo_setup()


def _public_name(model_class: type) -> str:
    """Give the name of the package's model that a class is, or is derived from."""
    return next((base.__name__ for base in model_class.__mro__ if base.__name__ in MODELS), model_class.__name__)


def model_name(checkpoint: dict[str, Any]) -> str | None:
    """Tell which of the package's models a checkpoint holds.

    Args:
        checkpoint: Its content.

    Returns:
        Name of the model's class; ``None`` if it is another package's.
    """
    record = checkpoint.get("anomalib_mixedteacher")
    # the first checkpoints, of the time when there was one model, do not note its name
    return None if record is None else record.get("model", "MixedTeacher")


def _paths(batch: Batch) -> list[str] | None:
    """Give the files of a batch's images, if they come from files."""
    return getattr(batch, "image_path", None)


def _plain(value: Any) -> Any:
    """Make a tuple and the list that it becomes on the way through a file compare equal."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
