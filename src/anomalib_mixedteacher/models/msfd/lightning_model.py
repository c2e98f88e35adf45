"""MSFD for anomalib's Engine and command line."""

from collections.abc import Sequence
from pathlib import Path

from anomalib.metrics import Evaluator
from anomalib.models import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_mixedteacher.components.standardized_map import Fusion, Standardize
from anomalib_mixedteacher.components.standardized_mixin import StandardizedMapMixin
from anomalib_mixedteacher.models.msfd.loss import MsfdLoss
from anomalib_mixedteacher.models.msfd.torch_model import MsfdModel


class Msfd(StandardizedMapMixin, AnomalibModule):
    """MSFD: multi-scale feature distillation with a combined distance (Yao et al., M2VIP 2021).

    Only the method's abstract is known here; what it leaves open is our choice, named below and in the model's README.
    The recipe is that of :class:`~anomalib_mixedteacher.MixedTeacher`: Adam, one cycle.

    Args:
        teacher_weights: Where the teacher's weights come from when training starts: ``"packaged"`` (from installed
            packages, no network; ``layers`` up to 2), ``"imagenet"`` (timm's, from its cache or the hub), ``"random"``
            (comparisons), or a path to a file or folder. A restored checkpoint holds its teacher and needs none.
        backbone: timm name of teacher and student, plain ResNets: ``"resnet18"`` (ours, as the paper's is not known),
            ``"wide_resnet50_2"`` and the like.
        layers: Stages that are distilled and compared; 1 is ``layer1`` (stride 4).
        cosine_weight: Weight of the cosine distance, 0 to 1; the squared Euclidean distance has the rest. Ours.
        fusion: How distances become one map: ``"standardized_sum"`` (ours) or ``"product"`` of the levels, up-sampled
            by a Gaussian over their receptive fields as in the abstract.
        sigma: Standard deviation of the map's Gaussian smoothing, in pixels at the model's input size.
        image_size: Height and width in pixels to which the default pre-processor resizes; 256 x 256 by default.
        tile_size: Side of the tiles into which images are cut at their own size, a multiple of 64; by default images
            are resized instead.
        standardize: What tiles of good images are compared by: the position within a ``"tile"``, or with it the
            ``"position"`` across the image's width, for webs of one width whose edges look otherwise than their middle.
        tiles_per_image: Tiles of each image that a training step takes, drawn anew each time.
        learning_rate: A tenth of the one-cycle schedule's peak.
        max_epochs: Epochs to train where the trainer is given no limit.
        feature_cache: Memory in MiB for the teacher's features, which are then computed once for each training image
            rather than in every epoch; 0 keeps none.
        pre_processor: anomalib pre-processor, or whether to use the default one (resize and ImageNet normalisation).
        post_processor: anomalib post-processor, or whether to use the default one.
        evaluator: anomalib evaluator, or whether to use the default one.
        visualizer: anomalib visualizer, or whether to use the default one.

    Raises:
        ConfigurationError: If an argument is not one of its choices or out of its range.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_mixedteacher import Msfd, SyntheticTextures
        >>> Engine(max_epochs=2).train(model=Msfd(), datamodule=SyntheticTextures())  # doctest: +SKIP
    """

    model: MsfdModel

    def __init__(
        self,
        teacher_weights: str | Path = "packaged",
        backbone: str = "resnet18",
        layers: Sequence[int] = (1, 2),
        cosine_weight: float = 0.5,
        fusion: Fusion = "standardized_sum",
        sigma: float = 4.0,
        image_size: tuple[int, int] | None = None,
        tile_size: int | None = None,
        tiles_per_image: int = 8,
        standardize: Standardize = "tile",
        learning_rate: float = 4e-4,
        max_epochs: int = 50,
        feature_cache: int = 2048,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=self.pre_processor_for(image_size, tile_size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = MsfdModel(backbone, layers, cosine_weight, fusion, sigma, tile_size, standardize)
        self.loss = MsfdLoss(cosine_weight)
        self.tiles_per_image = tiles_per_image
        self.set_recipe(str(teacher_weights), learning_rate, max_epochs, feature_cache)
