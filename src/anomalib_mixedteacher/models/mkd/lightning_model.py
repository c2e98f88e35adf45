"""MKD for anomalib's Engine and command line."""

from pathlib import Path
from typing import Any, Literal

import torch
from anomalib.metrics import Evaluator
from anomalib.models import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_mixedteacher.components.distillation_module import PROVISIONAL_IMAGES, DistillationModule
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.mkd.loss import MkdLoss
from anomalib_mixedteacher.models.mkd.torch_model import Cloner, Localization, MkdModel


class Mkd(DistillationModule, AnomalibModule):
    """MKD: multiresolution knowledge distillation (Salehi et al., CVPR 2021, arXiv 2011.11108).

    The heat map is the gradient of the image's score with respect to its pixels. Exported models hold that gradient
    as part of the graph, so that it needs no automatic differentiation beside the camera.

    Args:
        teacher_weights: Where the expert's weights come from when training starts: ``"imagenet"``, ``"random"``, or a
            path to a file or folder. There is no ``"texture"`` expert. A restored checkpoint holds its expert.
        cloner: ``"small"`` (the paper's, narrow between the critical layers) or ``"equal"`` (the expert's widths).
        direction_weight: The paper's lambda, the weight of the direction term beside the value term; ``"auto"`` lets
            both start at the same scale on the untrained network, as the paper says. The authors' code weighs the
            value term instead: its lambda is the inverse of this one.
        direction_only: Leave the value term out.
        localization: ``"gradient"``, ``"smooth_grad"`` (mean over noisy copies of the image, as many times as dear) or
            ``"guided_backprop"``.
        sigma: Standard deviation of the map's Gaussian smoothing, in pixels at the model's input size.
        opening: Side of the square of the map's morphological opening in pixels, odd; 0 for none.
        smooth_samples: Noisy copies of SmoothGrad.
        smooth_noise: Standard deviation of SmoothGrad's noise, as a part of the image's range.
        learning_rate: Adam's learning rate, constant as in the paper.
        max_epochs: Epochs to train where the trainer is given no limit; the paper's for MVTec AD.
        early_stopping_patience: Stop after this many validations without a lower loss on the good validation images;
            ``None`` never stops early. Without good validation images there is no early stopping, and an
            ``EarlyStopping`` of the trainer's takes the place of this one.
        feature_cache: Memory in MiB for the teachers' features, which are then computed once for each image rather than
            in every epoch, and for decoded images, which may take a half of it. Where it does not suffice, features are
            kept in a file, and images read in every epoch. 0 keeps none; so do random augmentations.
        compile_students: Compile the students for training, by ``torch.compile``; it needs a C++ compiler on the CPU.
        pre_processor: anomalib pre-processor, or whether to use the default one (resize to 128 x 128, the paper's size
            for MVTec AD, and ImageNet normalisation, which the expert was trained with and the authors left out there).
        post_processor: anomalib post-processor, or whether to use the default one.
        evaluator: anomalib evaluator, or whether to use the default one.
        visualizer: anomalib visualizer, or whether to use the default one.

    Raises:
        ConfigurationError: If an argument is not one of its choices.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_mixedteacher import Mkd, OneClass
        >>> model = Mkd(pre_processor=Mkd.configure_pre_processor((32, 32)))
        >>> Engine(max_epochs=51).train(model=model, datamodule=OneClass(category="3"))  # doctest: +SKIP
    """

    image_size = (128, 128)

    model: MkdModel
    loss: MkdLoss

    def __init__(
        self,
        teacher_weights: str | Path = "imagenet",
        cloner: Cloner = "small",
        direction_weight: float | Literal["auto"] = "auto",
        direction_only: bool = False,
        localization: Localization = "gradient",
        sigma: float = 4.0,
        opening: int = 0,
        smooth_samples: int = 50,
        smooth_noise: float = 0.1,
        learning_rate: float = 1e-3,
        max_epochs: int = 601,
        early_stopping_patience: int | None = 30,
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
        model = MkdModel(
            cloner, direction_weight, direction_only, localization, sigma, opening, smooth_samples, smooth_noise
        )
        recipe = (teacher_weights, learning_rate, max_epochs, early_stopping_patience, feature_cache, compile_students)
        self.build(model, *recipe)

    def configure_loss(self) -> MkdLoss:
        """Take the networks' loss: the score is made with it."""
        return self.model.loss

    def on_train_start(self) -> None:
        """Prepare as every model does, then set lambda on the untrained cloner where it is ``"auto"``."""
        super().on_train_start()
        if self.loss.needs_direction_weight:
            # computed as the first step will see the cloner, whose statistics are then put back
            untrained = {name: value.clone() for name, value in self.model.students.state_dict().items()}
            with torch.no_grad():
                self.loss.set_direction_weight(self.good_features(PROVISIONAL_IMAGES))
            self.model.students.load_state_dict(untrained)

    def configure_optimizers(self) -> Any:
        """Configure Adam with a constant learning rate."""
        return self.configure_adam()

    def to_onnx(  # type: ignore[override]  # anomalib's signature, not Lightning's
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export to ONNX; see :meth:`DistillationModule.to_onnx`.

        Raises:
            ConfigurationError: If SmoothGrad, whose noise is part of the graph, is to take images of any size.
        """
        if self.model.localization == "smooth_grad" and input_size is None and self.input_size is None:
            msg = "smooth_grad needs a graph of fixed size: give input_size, or a pre-processor that resizes."
            raise ConfigurationError(msg)
        return super().to_onnx(export_root, model_file_name, input_size, **kwargs)
