"""MSFD for anomalib's Engine and command line."""

from collections.abc import Sequence
from pathlib import Path

from anomalib.metrics import Evaluator
from anomalib.models import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_mixedteacher.components.distillation_module import DistillationModule
from anomalib_mixedteacher.models.msfd.anomaly_map import Combination, Upsampling
from anomalib_mixedteacher.models.msfd.loss import MsfdLoss
from anomalib_mixedteacher.models.msfd.torch_model import MsfdModel


class Msfd(DistillationModule, AnomalibModule):
    """MSFD: multi-scale feature distillation with a combined distance (Yao et al., M2VIP 2021).

    Only the method's abstract is known here; what it leaves open is our choice, named below and in the model's README.
    The recipe is that of :class:`~anomalib_mixedteacher.MixedTeacher`: Adam, one cycle, 100 epochs.

    Args:
        teacher_weights: Where the teacher's weights come from when training starts: ``"imagenet"``, ``"texture"``
            (shipped with this package; ``layers`` up to 2), ``"random"``, or a path to a file or folder. A restored
            checkpoint holds its teacher and needs none of these.
        backbone: Architecture of teacher and student: ``"resnet18"`` (ours, as the paper's is not known) or
            ``"wide_resnet50_2"``.
        layers: Stages that are distilled and compared; 1 is ``layer1`` (stride 4).
        cosine_weight: Weight of the cosine distance, 0 to 1; the squared Euclidean distance has the rest. Ours.
        combination: How the levels' maps become one: ``"product"`` or ``"sum"``. Ours, measured.
        upsampling: ``"gaussian"`` over the receptive field, as in the paper, or ``"bilinear"``.
        sigma_ratio: Standard deviation of that Gaussian over the receptive field's half-width. Ours, measured.
        learning_rate: A tenth of the one-cycle schedule's peak.
        max_epochs: Epochs to train where the trainer is given no limit.
        early_stopping_patience: Stop after this many validations without a lower loss on the good validation images;
            ``None`` never stops early. Without good validation images there is no early stopping, and an
            ``EarlyStopping`` of the trainer's takes the place of this one.
        freeze_bn_after_first_epoch: Keep the students' batch-normalisation statistics from the second epoch on, as
            MixedTeacher's official code does. Ours, measured: where features hardly vary, students whose statistics go
            on following each batch give wild features for single images.
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
        >>> from anomalib_mixedteacher import Msfd, SyntheticTextures
        >>> model = Msfd(teacher_weights="random")
        >>> Engine(max_epochs=2).train(model=model, datamodule=SyntheticTextures())  # doctest: +SKIP
    """

    model: MsfdModel
    loss: MsfdLoss

    def __init__(
        self,
        teacher_weights: str | Path = "imagenet",
        backbone: str = "resnet18",
        layers: Sequence[int] = (1, 2, 3),
        cosine_weight: float = 0.5,
        combination: Combination = "product",
        upsampling: Upsampling = "gaussian",
        sigma_ratio: float = 1 / 12,
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
        model = MsfdModel(backbone, layers, cosine_weight, combination, upsampling, sigma_ratio)
        recipe = (teacher_weights, learning_rate, max_epochs, early_stopping_patience, feature_cache, compile_students)
        self.build(model, *recipe, freeze_bn_after_first_epoch)

    def configure_loss(self) -> MsfdLoss:
        """Make the loss with the map's weight of the two distances."""
        return MsfdLoss(self.model.anomaly_map_generator.cosine_weight)
