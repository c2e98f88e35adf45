"""One teacher distilled into its student, without the other: what a teacher is worth in MixedTeacher, in minutes."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from anomalib_mixedteacher.components.distance import normalized_distance
from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor
from anomalib_mixedteacher.components.teacher import Teacher, freeze_normalization_statistics
from anomalib_mixedteacher.models.mixed_teacher.anomaly_map import AnomalyMapGenerator
from anomalib_mixedteacher.models.mixed_teacher.torch_model import ReducedResNet

LEARNING_RATE = 4e-4  # MixedTeacher's recipe: one cycle with a peak of ten times this
_BATCH = 8


def build_student(teacher: Teacher) -> nn.Module:
    """Build the untrained student that MixedTeacher has for a teacher."""
    layers = teacher.extractor.out_indices
    return ReducedResNet(layers) if teacher.backbone == "resnet18" else FeatureExtractor(teacher.backbone, layers)


def distill(teacher: Teacher, images: torch.Tensor, epochs: int, seed: int = 0) -> nn.Module:
    """Train a student on good images, with MixedTeacher's loss and schedule, and batch normalisation frozen as there.

    The teacher sees each image once: nothing is augmented, so its features are kept.

    Args:
        teacher: A loaded teacher.
        images: Normalised good images ``(N, 3, H, W)``, eight or more.
        epochs: Passes over the images.
        seed: Seed of the student's weights and of the batches.

    Returns:
        The student, in evaluation mode.
    """
    torch.manual_seed(seed)
    student = build_student(teacher).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layers = [torch.cat(maps) for maps in zip(*(teacher(batch) for batch in images.split(_BATCH)), strict=True)]
    batches = len(images) // _BATCH
    optimizer = Adam(student.parameters(), lr=LEARNING_RATE)
    schedule = OneCycleLR(optimizer, max_lr=10 * LEARNING_RATE, total_steps=epochs * batches)
    student.train()
    for epoch in range(epochs):
        if epoch == 1:
            freeze_normalization_statistics(student)
        for chosen in torch.randperm(len(images))[: batches * _BATCH].split(_BATCH):
            features = student(images[chosen].contiguous(memory_format=torch.channels_last))
            pairs = zip(layers, features, strict=True)
            loss = torch.stack([normalized_distance(t[chosen], s).mean() for t, s in pairs]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return student.eval()


@torch.no_grad()
def standardized_maps(
    teacher: Teacher, student: nn.Module, good: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compare distances with those of good images at the same position, as MixedTeacher does by default.

    Args:
        teacher: A loaded teacher.
        student: Its trained student.
        good: Normalised good images ``(N, 3, H, W)``.

    Returns:
        Function from normalised images ``(B, 3, H, W)`` to maps ``(B, 1, H / 4, W / 4)``, not smoothed.
    """
    generator = AnomalyMapGenerator("standardized_sum", sigma=0, layers=(len(teacher.extractor.out_indices),))
    generator.set_good_statistics(({"one": teacher(x)}, {"one": student(x)}) for x in good.split(_BATCH))

    @torch.no_grad()
    def maps(images: torch.Tensor) -> torch.Tensor:
        size = (images.shape[-2], images.shape[-1])
        return generator.coarse({"one": teacher(images)}, {"one": student(images)}, size)

    return maps
