"""MixedTeacher for anomalib's Engine and command line."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.metrics import Evaluator
from anomalib.models import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_mixedteacher.components.distillation_module import (
    PROVISIONAL_IMAGES,
    STATISTICS_IMAGES,
    DistillationModule,
)
from anomalib_mixedteacher.models.mixed_teacher.anomaly_map import Fusion
from anomalib_mixedteacher.models.mixed_teacher.loss import MixedTeacherLoss
from anomalib_mixedteacher.models.mixed_teacher.torch_model import MixedTeacherModel, StudentInit

logger = logging.getLogger(__name__)


class MixedTeacher(DistillationModule, AnomalibModule):
    """MixedTeacher: two frozen teachers distilled into two students on good images only.

    Defaults are the paper's settings (Thomine et al. 2023, arXiv 2306.09859, and its official code) except where the
    model's README says otherwise and shows the measurement.

    Args:
        teacher_weights: Where the teachers' weights come from when training starts: ``"imagenet"`` (timm's, from its
            cache or the hub), ``"texture"`` (shipped with this package, no network), ``"random"`` (tests and
            ablations), or a path to a file or folder. A restored checkpoint holds its teachers and needs none of these.
        student_init: ``"scratch"``, or ``"teacher"`` to start the EfficientNet student from its teacher's weights, as
            the official code does.
        fusion: How the teachers' maps become one: ``"product"`` (official), ``"sum"``, ``"normalized_product"`` or
            ``"standardized_sum"``; see :class:`~.anomaly_map.AnomalyMapGenerator`.
        resnet_layers: Stages of the ResNet-18 teacher; 1 is ``layer1`` (stride 4, pooled to 8).
        efficientnet_layers: Stages of the EfficientNet-b0 teacher; 3 has stride 16, 4 has stride 32.
        sigma: Standard deviation of the map's Gaussian smoothing, in pixels at the model's input size.
        learning_rate: A tenth of the one-cycle schedule's peak, as the official code has it; the schedule starts at
            0.4 of it and ends near 0.
        max_epochs: Epochs to train where the trainer is given no limit.
        early_stopping_patience: Stop after this many validations without a lower loss on the good validation images;
            ``None`` never stops early. Without good validation images there is no early stopping, and an
            ``EarlyStopping`` of the trainer's takes the place of this one.
        freeze_bn_after_first_epoch: Keep the students' batch-normalisation statistics from the second epoch on, as
            the official code does. Where features hardly vary, students whose statistics go on following each batch
            give wild features for single images.
        feature_cache: Memory in MiB for the teachers' features, which are then computed once for each image rather than
            in every epoch, and for decoded images, which may take a half of it. Where it does not suffice, features are
            kept in a file, and images read in every epoch. 0 keeps none; so do random augmentations.
        compile_students: Compile the students for training, by ``torch.compile``; it needs a C++ compiler on the CPU.
        pre_processor: anomalib pre-processor, or whether to use the default one (resize to 256 x 256 and ImageNet
            normalisation).
        post_processor: anomalib post-processor, or whether to use the default one.
        evaluator: anomalib evaluator, or whether to use the default one.
        visualizer: anomalib visualizer, or whether to use the default one.

    Raises:
        ConfigurationError: If an argument is not one of its choices.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_mixedteacher import MixedTeacher, SyntheticTextures
        >>> model = MixedTeacher(teacher_weights="random")
        >>> Engine(max_epochs=2).train(model=model, datamodule=SyntheticTextures())  # doctest: +SKIP
    """

    # In INT8 the unbounded activations of these networks are cut where a bright defect drives them: maps lost up to two
    # thirds of their height (docs/edge.md).
    float_networks = ("efficientnet",)

    model: MixedTeacherModel
    loss: MixedTeacherLoss

    def __init__(
        self,
        teacher_weights: str | Path = "imagenet",
        student_init: StudentInit = "scratch",
        fusion: Fusion = "standardized_sum",
        resnet_layers: Sequence[int] = (1, 2),
        efficientnet_layers: Sequence[int] = (3, 4),
        sigma: float = 4.0,
        learning_rate: float = 4e-4,
        max_epochs: int = 100,
        early_stopping_patience: int | None = 30,
        freeze_bn_after_first_epoch: bool = True,
        feature_cache: int = 2048,
        compile_students: bool = False,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        model = MixedTeacherModel(resnet_layers, efficientnet_layers, student_init, fusion, sigma)
        recipe = (teacher_weights, learning_rate, max_epochs, early_stopping_patience, feature_cache, compile_students)
        self.build(model, *recipe, freeze_bn_after_first_epoch)
        self._statistics_step = -1

    def configure_loss(self) -> MixedTeacherLoss:
        """Make the distillation loss."""
        return MixedTeacherLoss()

    def on_train_start(self) -> None:
        """Prepare as every model does; statistics of an earlier fit count for nothing."""
        super().on_train_start()
        self._statistics_step = -1

    def on_train_epoch_end(self) -> None:
        """Gather statistics of good images where no validation run has done so."""
        if self._statistics_step != self.global_step:
            self._update_good_statistics()

    def on_validation_start(self) -> None:
        """Gather statistics of good images first: the thresholds found in validation depend on them."""
        if self.trainer.state.fn == "fit":
            self._update_good_statistics()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load what every model does, and say where thresholds do not fit the map any more."""
        super().on_load_checkpoint(checkpoint)
        version = checkpoint["anomalib_mixedteacher"].get("version", "")
        if version.startswith(("0.2.", "0.3.")) and self.model.anomaly_map_generator.fusion == "standardized_sum":
            logger.warning(
                "This checkpoint is of version %s, whose maps had another scale: its thresholds do not fit until "
                "'mixedteacher calibrate' or further training has found them again.",
                version,
            )

    @torch.no_grad()
    def _update_good_statistics(self) -> None:
        if not self.model.anomaly_map_generator.needs_good_statistics:
            return
        training = [m for m in self.model.students.modules() if m.training]
        self.model.students.eval()
        count = STATISTICS_IMAGES if self.may_end_here else PROVISIONAL_IMAGES
        self.model.anomaly_map_generator.set_good_statistics(self.good_features(count))
        for module in training:
            module.training = True
        self._statistics_step = self.global_step
