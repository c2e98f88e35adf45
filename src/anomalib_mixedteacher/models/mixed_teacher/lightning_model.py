"""MixedTeacher for anomalib's Engine and command line."""

from collections.abc import Sequence
from pathlib import Path

from anomalib.metrics import Evaluator
from anomalib.models import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_mixedteacher.components.standardized_map import Fusion, Standardize
from anomalib_mixedteacher.components.standardized_mixin import StandardizedMapMixin
from anomalib_mixedteacher.models.mixed_teacher.loss import MixedTeacherLoss
from anomalib_mixedteacher.models.mixed_teacher.torch_model import Architecture, MixedTeacherModel


class MixedTeacher(StandardizedMapMixin, AnomalibModule):
    """MixedTeacher: two frozen teachers distilled on good images only (Thomine et al. 2023, arXiv 2306.09859).

    What is the paper's and what is ours: docs/method.md.

    Args:
        teacher_weights: Where the teachers' weights come from when training starts: ``"packaged"`` (from installed
            packages, no network), ``"imagenet"`` (timm's, from its cache or the hub), ``"random"`` (comparisons), or a
            path to a file or folder. A restored checkpoint holds its teachers and needs none of these.
        architecture: ``"fast"`` (EfficientNet-Lite0, one small student for both teachers) or ``"paper"``
            (EfficientNet-b0, two students).
        resnet_layers: Layers of the ResNet-18 teacher, of 1, 2, 3. The packaged one has 1 and 2.
        efficientnet: timm name of the second teacher; the architecture's own by default.
        efficientnet_blocks: Blocks of the EfficientNet teacher, of 2 to 6: 3 and 4 have stride 16, 5 and 6 stride 32.
            By default 5 in ``"fast"``, 4 and 6 in ``"paper"``.
        fusion: How distances become one map: ``"standardized_sum"`` or the official ``"product"``; see
            :class:`~.anomaly_map.AnomalyMapGenerator`.
        sigma: Standard deviation of the map's Gaussian smoothing, in pixels at the model's input size.
        image_size: Height and width in pixels to which the default pre-processor resizes; 256 x 256 by default.
        tile_size: Side of the tiles into which images are cut at their own size, a multiple of 64; by default images
            are resized instead.
        standardize: What tiles of good images are compared by: the position within a ``"tile"``, or with it the
            ``"position"`` across the image's width, for webs of one width whose edges look otherwise than their middle.
        tiles_per_image: Tiles of each image that a training step takes, drawn anew each time.
        learning_rate: A tenth of the one-cycle schedule's peak, as the official code has it.
        max_epochs: Epochs to train where the trainer is given no limit.
        feature_cache: Memory in MiB for the teachers' features, which are then computed once for each training image
            rather than in every epoch; 0 keeps none.
        pre_processor: anomalib pre-processor, or whether to use the default one (resize and ImageNet normalisation).
        post_processor: anomalib post-processor, or whether to use the default one.
        evaluator: anomalib evaluator, or whether to use the default one.
        visualizer: anomalib visualizer, or whether to use the default one.

    Raises:
        ConfigurationError: If an argument is not one of its choices.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_mixedteacher import MixedTeacher, SyntheticTextures
        >>> Engine(max_epochs=2).train(model=MixedTeacher(), datamodule=SyntheticTextures())  # doctest: +SKIP
    """

    model: MixedTeacherModel

    def __init__(
        self,
        teacher_weights: str | Path = "packaged",
        architecture: Architecture = "fast",
        resnet_layers: Sequence[int] = (1, 2),
        efficientnet: str | None = None,
        efficientnet_blocks: Sequence[int] | None = None,
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
        teachers = (architecture, resnet_layers, efficientnet, efficientnet_blocks)
        self.model = MixedTeacherModel(*teachers, fusion, sigma, tile_size, standardize)
        self.loss = MixedTeacherLoss()
        if "lite" not in self.model.teachers["efficientnet"].backbone:
            self.float_networks = ("efficientnet",)  # INT8 cuts unbounded activations where a bright defect drives them
        self.tiles_per_image = tiles_per_image
        self.set_recipe(str(teacher_weights), learning_rate, max_epochs, feature_cache)
