"""What the networks of every distillation detector share: frozen teachers, students, the check of an image's size."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.decoding import MIN_SIDE
from anomalib_mixedteacher.errors import ConfigurationError

Features = Mapping[str, Sequence[torch.Tensor]]


class DistillationModel(nn.Module):
    """Frozen teachers and their students.

    Args:
        teachers: Teachers by name.
        students: One student for each teacher, by the same name, whose maps have the shapes of the teacher's.
    """

    teachers: Mapping[str, Teacher]

    def __init__(self, teachers: Mapping[str, Teacher], students: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleDict(teachers)  # type: ignore[assignment]  # the mapping that nn.ModuleDict is
        self.students = nn.ModuleDict(students)

    @property
    def teachers_loaded(self) -> bool:
        """Whether all teachers have weights."""
        return all(teacher.loaded for teacher in self.teachers.values())

    def load_teachers(self, source: str) -> None:
        """Load the teachers' weights.

        Args:
            source: See :meth:`~anomalib_mixedteacher.components.Teacher.load`.

        Raises:
            WeightsError: If weights cannot be found, read or matched.
        """
        for teacher in self.teachers.values():
            teacher.load(source)

    def check_size(self, images: torch.Tensor) -> None:
        """Check that images are large enough, except in a graph that is being exported.

        Args:
            images: Images of shape ``(B, 3, H, W)``.

        Raises:
            ConfigurationError: If a side is too short for the networks or for the map.
        """
        if torch.compiler.is_compiling():
            return
        height, width = images.shape[-2:]
        if min(height, width) < MIN_SIDE:
            msg = (
                f"Images of {height} x {width} pixels reach the model, which needs {MIN_SIDE} or more a side: enlarge "
                "them in the pre-processor."
            )
            raise ConfigurationError(msg)
        self.check_map_size(height, width)

    def check_map_size(self, height: int, width: int) -> None:
        """Check that a map can be made for images of a size; a model whose map needs more than 32 pixels overrides it.

        Args:
            height: Height of the images in pixels.
            width: Their width.
        """

    def teacher_features(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Compute the teachers' feature maps.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, sides of 32 pixels or more. Sides that are no
                multiple of 32 are allowed.

        Returns:
            Feature maps by teacher name.

        Raises:
            ConfigurationError: If a side is too short.
            TeacherNotLoadedError: If the teachers have no weights yet.
        """
        self.check_size(images)
        return {name: module(images) for name, module in self.teachers.items()}

    def student_features(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Compute the students' feature maps.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Feature maps by teacher name, of the same shapes as the teachers'.
        """
        return {name: module(images) for name, module in self.students.items()}

    def features(self, images: torch.Tensor) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[torch.Tensor]]]:
        """Compute the teachers' and the students' feature maps; see the two methods before."""
        return self.teacher_features(images), self.student_features(images)

    def forward(
        self, images: torch.Tensor
    ) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[torch.Tensor]]] | InferenceBatch:
        """Compute features in training mode, predictions in evaluation mode.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``; see :meth:`features`.

        Returns:
            In training mode what :meth:`features` returns. In evaluation mode an ``InferenceBatch`` with
            ``anomaly_map`` of shape ``(B, 1, H, W)`` and ``pred_score`` of shape ``(B, 1)``; see :meth:`predict`.
        """
        teacher, student = self.features(images)
        if self.training:
            return teacher, student
        return self.predict(teacher, student, images)

    @abstractmethod
    def predict(self, teacher: Features, student: Features, images: torch.Tensor) -> InferenceBatch:
        """Compute predictions from features.

        Args:
            teacher: The teachers' feature maps, as :meth:`features` returns them.
            student: The students' feature maps.
            images: The images that gave them.

        Returns:
            Anomaly map of shape ``(B, 1, H, W)`` and score of shape ``(B, 1)``, not normalised.
        """
