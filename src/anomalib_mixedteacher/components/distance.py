"""Distances between a teacher's and a student's features: the one definition that losses and anomaly maps share."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes features of teacher and student, ``(B, C, H, W)``, and gives ``(B, H, W)``, non-negative."""


def normalized_distance(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    r"""Half the squared Euclidean distance of channel-normalised features, position by position.

    .. math::  d_{ij} = \tfrac{1}{2} \left\lVert \frac{t_{ij}}{\lVert t_{ij} \rVert_2}
               - \frac{s_{ij}}{\lVert s_{ij} \rVert_2} \right\rVert_2^2 = 1 - \cos(t_{ij}, s_{ij})

    This is the per-position loss of STFPM (Wang et al. 2021, eq. 1), which MixedTeacher takes over.

    Half-precision features are compared in float32: a squared norm of 320 channels overflows float16.

    Args:
        teacher: Teacher features of shape ``(B, C, H, W)``.
        student: Student features of the same shape.

    Returns:
        Distance of shape ``(B, H, W)``, in ``[0, 2]``; ``[0, 1]`` where no feature is negative.
    """
    teacher, student = _single_precision(teacher, student)
    difference = F.normalize(teacher, dim=1) - F.normalize(student, dim=1)
    return 0.5 * difference.square().sum(dim=1)


def euclidean_distance(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    r"""Squared Euclidean distance of the features as they are, per channel, position by position.

    .. math::  d_{ij} = \frac{1}{C} \left\lVert t_{ij} - s_{ij} \right\rVert_2^2

    Unlike :func:`normalized_distance` it sees the features' length. The division by the number of channels makes it
    comparable between levels.

    Half-precision features are compared in float32.

    Args:
        teacher: Teacher features of shape ``(B, C, H, W)``.
        student: Student features of the same shape.

    Returns:
        Distance of shape ``(B, H, W)``, non-negative and without bound.
    """
    teacher, student = _single_precision(teacher, student)
    return (teacher - student).square().mean(dim=1)


def _single_precision(teacher: torch.Tensor, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring both to the wider of their types, at least float32."""
    dtype = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
    return teacher.to(dtype), student.to(dtype)
