"""The distance between a teacher's and a student's features: the one definition that loss and anomaly map share."""

import torch
from torch.nn import functional as F


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
    dtype = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
    difference = F.normalize(teacher.to(dtype), dim=1) - F.normalize(student.to(dtype), dim=1)
    return 0.5 * difference.square().sum(dim=1)
