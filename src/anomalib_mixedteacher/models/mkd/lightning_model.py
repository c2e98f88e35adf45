"""MKD for anomalib's Engine and command line."""

import copy
from pathlib import Path
from typing import Any, Literal

from anomalib.metrics import Evaluator
from anomalib.models import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn
from torch.optim import Adam

from anomalib_mixedteacher.components.distillation_mixin import DistillationMixin
from anomalib_mixedteacher.models.mkd.loss import MkdLoss
from anomalib_mixedteacher.models.mkd.torch_model import MkdModel


class Mkd(DistillationMixin, AnomalibModule):
    """MKD: multiresolution knowledge distillation (Salehi et al., CVPR 2021, arXiv 2011.11108).

    The heat map is the gradient of the image's score with respect to its pixels. Exported models hold that gradient
    as part of the graph, so that it needs no automatic differentiation beside the camera.

    Args:
        teacher_weights: Where the expert's weights come from when training starts: ``"imagenet"`` (timm's, from its
            cache or the hub), ``"random"`` (comparisons), or a path to a file or folder; VGG-16 is not packaged. A
            restored checkpoint holds its expert and needs none of these.
        direction_weight: The paper's lambda, the weight of the direction term beside the value term; ``"auto"`` lets
            both start at the same scale on the untrained network, as the paper says. See :class:`~.loss.MkdLoss`.
        sigma: Standard deviation of the map's Gaussian smoothing, in pixels at the model's input size.
        image_size: Height and width in pixels to which the default pre-processor resizes; the paper's for MVTec AD.
        learning_rate: Adam's learning rate, constant as in the paper.
        max_epochs: Epochs to train where the trainer is given no limit; the paper's for MVTec AD.
        feature_cache: Memory in MiB for the expert's features, which are then computed once for each training image
            rather than in every epoch; 0 keeps none.
        pre_processor: anomalib pre-processor, or whether to use the default one (resize, and ImageNet normalisation,
            which the expert was trained with and the authors left out on MVTec AD).
        post_processor: anomalib post-processor, or whether to use the default one.
        evaluator: anomalib evaluator, or whether to use the default one.
        visualizer: anomalib visualizer, or whether to use the default one.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_mixedteacher import Mkd, SyntheticTextures
        >>> Engine(max_epochs=51).train(model=Mkd(), datamodule=SyntheticTextures())  # doctest: +SKIP
    """

    model: MkdModel
    loss: MkdLoss

    def __init__(
        self,
        teacher_weights: str | Path = "imagenet",
        direction_weight: float | Literal["auto"] = "auto",
        sigma: float = 4.0,
        image_size: tuple[int, int] = (128, 128),
        learning_rate: float = 1e-3,
        max_epochs: int = 601,
        feature_cache: int = 2048,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=self.configure_pre_processor(image_size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = MkdModel(direction_weight, sigma)
        self.loss = self.model.loss
        self.set_recipe(str(teacher_weights), learning_rate, max_epochs, feature_cache)

    def on_train_start(self) -> None:
        """Prepare as every model does, then set lambda on the untrained cloner where it is ``"auto"``."""
        super().on_train_start()
        if self.loss.direction_weight.isnan():
            # as the first step will see the cloner, whose statistics are then put back
            untrained = copy.deepcopy(self.model.students.state_dict())
            self.loss.set_direction_weight(self.good_features())
            self.model.students.load_state_dict(untrained)

    def on_train_epoch_start(self) -> None:
        """Let batch normalisation learn to the end, as in the authors' code."""

    def configure_optimizers(self) -> Any:
        """Configure Adam with a constant learning rate."""
        return Adam(self.model.students.parameters(), lr=self.learning_rate)
