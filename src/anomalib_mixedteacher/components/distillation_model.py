"""What the networks and the losses of every distillation detector share."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_mixedteacher.components.teacher import Teacher, set_normalization_statistics
from anomalib_mixedteacher.errors import ConfigurationError
from mixedteacher_edge.decoding import MIN_SIDE

Features = list[torch.Tensor]
"""Feature maps of shape ``(B, C_i, H_i, W_i)``, the first teacher's first; students' have their teachers' shapes."""


class DistillationModel(nn.Module):
    """Frozen teachers, and students that learn to give the same features on good images.

    Args:
        teachers: Teachers by name.
        students: Students by name, in the order of the teachers' maps; one student may imitate several teachers.
    """

    teachers: Mapping[str, Teacher]  # the mapping that nn.ModuleDict is
    students: nn.ModuleDict

    min_side: int = MIN_SIDE
    """Shortest side in pixels of an image that the networks and the map can process."""

    def __init__(self, teachers: Mapping[str, Teacher], students: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleDict(teachers)  # type: ignore[assignment]
        self.students = nn.ModuleDict(students)

    @property
    def loaded(self) -> bool:
        """Whether all teachers have weights."""
        return all(teacher.loaded for teacher in self.teachers.values())

    def load_teachers(self, source: str, images: Iterable[torch.Tensor]) -> None:
        """Load the teachers' weights.

        Args:
            source: See :func:`~anomalib_mixedteacher.components.weights.load_weights`.
            images: Batches ``(B, 3, H, W)`` of normalised good images of one size, by which random teachers are
                normalised; others do not look at them.

        Raises:
            WeightsError: If weights cannot be found, read or matched.
        """
        for teacher in self.teachers.values():
            teacher.load(source)
        if source == "random":
            joined = torch.cat(list(images))
            for teacher in self.teachers.values():
                set_normalization_statistics(teacher, joined)

    def teacher_features(self, images: torch.Tensor) -> Features:
        """Compute the teachers' feature maps.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, of any sides from ``min_side`` on.

        Raises:
            ConfigurationError: If a side is too short.
            TeacherNotLoadedError: If the teachers have no weights yet.
        """
        self.check_size(images)
        return [features for teacher in self.teachers.values() for features in teacher(images)]

    def student_features(self, images: torch.Tensor) -> Features:
        """Compute the students' feature maps; see :meth:`teacher_features`."""
        return [features for student in self.students.values() for features in student(images)]

    def check_size(self, images: torch.Tensor) -> None:
        """Check that images are large enough, except in a graph that is being exported.

        Raises:
            ConfigurationError: If a side is below ``min_side``.
        """
        if torch.compiler.is_compiling():
            return
        height, width = images.shape[-2:]
        if min(height, width) < self.min_side:
            msg = (
                f"Images of {height} x {width} pixels reach the model, which needs {self.min_side} or more a side: "
                "give a larger image_size."
            )
            raise ConfigurationError(msg)

    def forward(self, images: torch.Tensor) -> tuple[Features, Features] | InferenceBatch:
        """Compute features in training mode, predictions in evaluation mode.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            In training mode the teachers' and the students' features, in evaluation mode what :meth:`predict` returns.
        """
        teacher, student = self.teacher_features(images), self.student_features(images)
        return (teacher, student) if self.training else self.predict(teacher, student, images)

    @abstractmethod
    def predict(self, teacher: Features, student: Features, images: torch.Tensor) -> InferenceBatch:
        """Compute predictions from features.

        Args:
            teacher: The teachers' features.
            student: The students' features.
            images: The images that gave them, of shape ``(B, 3, H, W)``.

        Returns:
            ``anomaly_map`` of shape ``(B, 1, H, W)`` and ``pred_score`` of shape ``(B, 1)``, not normalised.
        """


class DistillationLoss(nn.Module):
    """Mean over the batch of what :meth:`per_image` gives."""

    @abstractmethod
    def per_image(self, teacher: Features, student: Features) -> torch.Tensor:
        """Compute the loss of each image.

        Args:
            teacher: The teachers' features.
            student: The students' features.

        Returns:
            Loss of shape ``(B,)``, non-negative.
        """

    def forward(self, teacher: Features, student: Features) -> torch.Tensor:
        """Compute the loss of a batch, a scalar; see :meth:`per_image`."""
        return self.per_image(teacher, student).mean()
