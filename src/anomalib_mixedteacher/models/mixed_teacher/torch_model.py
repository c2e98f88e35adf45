"""Networks of MixedTeacher: two frozen teachers and their students."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torchvision.models.resnet import BasicBlock

from anomalib_mixedteacher.components.distillation_model import DistillationModel, Features
from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor, initialize_weights
from anomalib_mixedteacher.components.smoothing import check_smoothing
from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.components.upsampling import bilinear_upsample
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.mixed_teacher.anomaly_map import AnomalyMapGenerator, Fusion

StudentInit = Literal["scratch", "teacher"]


class ReducedResNet(nn.Module):
    """The paper's reduced residual student: one basic block per stage, each with stride 2.

    Its maps have the size and the channels of a ResNet-18 teacher's maps pooled 2 x 2: stride 8 and 64 channels for
    stage 1, stride 16 and 128 channels for stage 2, and so on.

    Args:
        out_indices: Stages to return, 1 to 4.
    """

    def __init__(self, out_indices: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        channels = 64
        for stage in range(max(self.out_indices)):
            width = 64 * 2**stage
            shortcut = nn.Sequential(
                nn.Conv2d(channels, width, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(width)
            )
            self.stages.append(BasicBlock(channels, width, stride=2, downsample=shortcut))
            channels = width
        initialize_weights(self)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute feature maps.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Maps of shape ``(B, 64 * 2 ** (i - 1), H / 2 ** (i + 2), W / 2 ** (i + 2))`` for each stage ``i``.
        """
        maps = []
        x = self.stem(images)
        for index, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if index in self.out_indices:
                maps.append(x)
        return maps


class MixedTeacherModel(DistillationModel):
    """Two frozen teachers, their students and the anomaly map between them.

    Args:
        resnet_layers: Stages of the ResNet-18 teacher (1 is ``layer1``), 1 to 4.
        efficientnet_layers: Stages of the EfficientNet-b0 teacher; 3 is stride 16 with 112 channels, 4 is stride 32
            with 320 channels.
        student_init: ``"scratch"`` initialises both students at random; ``"teacher"`` starts the EfficientNet student
            from its teacher's weights, as the official code does. The reduced student has no counterpart of its
            own shape and always starts at random.
        fusion: See :class:`AnomalyMapGenerator`.
        sigma: See :class:`AnomalyMapGenerator`.

    Raises:
        ConfigurationError: If an argument is not one of its choices.
    """

    def __init__(
        self,
        resnet_layers: Sequence[int] = (1, 2),
        efficientnet_layers: Sequence[int] = (3, 4),
        student_init: StudentInit = "scratch",
        fusion: Fusion = "standardized_sum",
        sigma: float = 4.0,
    ) -> None:
        if student_init not in get_args(StudentInit):
            msg = f"Unknown student_init {student_init!r}; choose one of {', '.join(get_args(StudentInit))}."
            raise ConfigurationError(msg)
        if not resnet_layers or not set(resnet_layers) <= {1, 2, 3, 4}:
            msg = f"resnet_layers={list(resnet_layers)} must be one or more of 1, 2, 3, 4 (layer1 to layer4)."
            raise ConfigurationError(msg)
        if not efficientnet_layers or not set(efficientnet_layers) <= {0, 1, 2, 3, 4}:
            choices = "0, 1, 2, 3, 4 (stride 2 to 32)"
            msg = f"efficientnet_layers={list(efficientnet_layers)} must be one or more of {choices}."
            raise ConfigurationError(msg)
        resnet_layers, efficientnet_layers = sorted(resnet_layers), sorted(efficientnet_layers)
        super().__init__(
            teachers={
                "resnet": Teacher("resnet18", resnet_layers, pool=True),
                "efficientnet": Teacher("efficientnet_b0", efficientnet_layers),
            },
            students={
                "resnet": ReducedResNet(resnet_layers),
                "efficientnet": FeatureExtractor("efficientnet_b0", efficientnet_layers),
            },
        )
        self.student_init = student_init
        self.anomaly_map_generator = AnomalyMapGenerator(fusion, sigma, (len(resnet_layers), len(efficientnet_layers)))

    def load_teachers(self, source: str) -> None:
        """Load both teachers' weights, and start the students from them where ``student_init`` says so.

        Args:
            source: See :meth:`~anomalib_mixedteacher.components.Teacher.load`.

        Raises:
            WeightsError: If weights cannot be found, read or matched.
        """
        super().load_teachers(source)
        if self.student_init == "teacher":
            teacher = self.teachers["efficientnet"]
            self.students["efficientnet"].load_state_dict(teacher.extractor.state_dict())

    def check_map_size(self, height: int, width: int) -> None:
        """Check that the map's smoothing fits; see :meth:`DistillationModel.check_map_size`.

        Raises:
            ConfigurationError: If a side is too short.
        """
        generator = self.anomaly_map_generator
        check_smoothing(height, width, generator.reach + 1, generator.sigma)

    def predict(self, teacher: Features, student: Features, images: torch.Tensor) -> InferenceBatch:
        """Compute predictions from features.

        Args:
            teacher: The teachers' feature maps, as :meth:`features` returns them.
            student: The students' feature maps.
            images: The images that gave them, of shape ``(B, 3, H, W)``.

        Returns:
            Anomaly map of shape ``(B, 1, H, W)`` and score of shape ``(B, 1)``, the maximum of the map before
            its upsampling to the image.
        """
        image_size = (images.shape[-2], images.shape[-1])
        coarse = self.anomaly_map_generator.coarse(teacher, student, image_size)
        return InferenceBatch(anomaly_map=bilinear_upsample(coarse, image_size), pred_score=coarse.amax(dim=(-2, -1)))
