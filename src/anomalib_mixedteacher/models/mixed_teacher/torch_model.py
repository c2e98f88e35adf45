"""Networks of MixedTeacher: two frozen teachers and what learns to imitate them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.components.standardized_map import Fusion, Standardize, StandardizedMapModel
from anomalib_mixedteacher.components.teacher import FeatureExtractor, Teacher
from anomalib_mixedteacher.components.weights import initialize_weights
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.mixed_teacher.anomaly_map import AnomalyMapGenerator

Architecture = Literal["fast", "paper"]
EFFICIENTNETS = {"fast": "tf_efficientnet_lite0", "paper": "efficientnet_b0"}
EFFICIENTNET_BLOCKS = {"fast": (5,), "paper": (4, 6)}
STAGES = {4: 0, 8: 1, 16: 2, 32: 3}  # of the reduced student, by the stride of their maps


class ReducedResNet(nn.Module):
    """The paper's reduced residual student: a ResNet stem, then one basic block per stage, each with stride 2.

    Stage 0 is the stem. Stage ``i`` has stride ``2 ** (i + 2)`` and ``width * 64 * 2 ** (i - 1)`` channels, the stem as
    many as stage 1: at width 1 the size and channels of a ResNet-18 teacher's map pooled 2 x 2. Where a teacher's map
    has other channels, a 1 x 1 convolution (a head) brings the stage's map to them.

    Args:
        maps: Stage and number of channels of each map to return.
        width: Share of the paper's channels.
    """

    def __init__(self, maps: Sequence[tuple[int, int]], width: float = 1.0) -> None:
        super().__init__()
        self.sources = [stage for stage, _ in maps]
        channels = [int(width * 64 * 2 ** max(0, stage - 1)) for stage in range(max(self.sources) + 1)]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList(
            BasicBlock(entering, leaving, stride=2, downsample=_shortcut(entering, leaving))
            for entering, leaving in pairwise(channels)
        )
        self.heads = nn.ModuleList(
            nn.Identity() if count == channels[stage] else nn.Conv2d(channels[stage], count, kernel_size=1)
            for stage, count in maps
        )
        initialize_weights(self)

    def forward(self, images: torch.Tensor) -> Features:
        """Compute feature maps.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            The maps asked for, of shape ``(B, C, H / 2 ** (i + 2), W / 2 ** (i + 2))`` of stage ``i``, rounded up.
        """
        outputs = [self.stem(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return [head(outputs[stage]) for head, stage in zip(self.heads, self.sources, strict=True)]


def _shortcut(entering: int, leaving: int) -> nn.Module:
    convolution = nn.Conv2d(entering, leaving, kernel_size=1, stride=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(leaving))


class MixedTeacherModel(StandardizedMapModel):
    """Two frozen teachers, ResNet-18 and an EfficientNet, and what imitates them on good images.

    ``"paper"`` pools the ResNet's maps over 2 x 2 positions and has two students, the reduced ResNet and an
    EfficientNet-b0. ``"fast"`` (ours) has one reduced ResNet of half the width with a head per map. Arguments are those
    of :class:`~anomalib_mixedteacher.MixedTeacher`.

    Raises:
        ConfigurationError: If an argument is not one of its choices.
    """

    def __init__(
        self,
        architecture: Architecture = "fast",
        resnet_layers: Sequence[int] = (1, 2),
        efficientnet: str | None = None,
        efficientnet_blocks: Sequence[int] | None = None,
        fusion: Fusion = "standardized_sum",
        sigma: float = 4.0,
        tile_size: int | None = None,
        standardize: Standardize = "tile",
    ) -> None:
        if architecture not in get_args(Architecture):
            msg = f"Unknown architecture {architecture!r}: choose one of {', '.join(get_args(Architecture))}."
            raise ConfigurationError(msg)
        if efficientnet_blocks is None:
            efficientnet_blocks = EFFICIENTNET_BLOCKS[architecture]
        for name, chosen, choices in (
            ("resnet_layers", resnet_layers, {1, 2, 3}),
            ("efficientnet_blocks", efficientnet_blocks, {2, 3, 4, 5, 6}),
        ):
            if not chosen or not set(chosen) <= choices:
                msg = f"{name}={list(chosen)} must be one or more of {', '.join(map(str, sorted(choices)))}."
                raise ConfigurationError(msg)
        blocks = [f"blocks.{block}" for block in efficientnet_blocks]
        teachers = {
            "resnet": Teacher("resnet18", [f"layer{layer}" for layer in resnet_layers], pool=architecture == "paper"),
            "efficientnet": Teacher(efficientnet or EFFICIENTNETS[architecture], blocks),
        }
        maps = [
            (STAGES[stride], channels)
            for teacher in teachers.values()
            for stride, channels in zip(teacher.strides, teacher.channels, strict=True)
        ]
        students: dict[str, nn.Module]
        if architecture == "fast":
            students = {"shared": ReducedResNet(maps, width=0.5)}
        else:
            students = {
                "resnet": ReducedResNet(maps[: len(resnet_layers)]),
                "efficientnet": FeatureExtractor(teachers["efficientnet"].backbone, blocks),
            }
        generator = AnomalyMapGenerator(fusion, sigma, [teacher.channels for teacher in teachers.values()])
        super().__init__(teachers, students, generator, tile_size, standardize)
