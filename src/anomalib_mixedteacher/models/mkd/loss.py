"""Distillation loss of MKD, its score, and the score's derivatives with respect to the feature maps."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from anomalib_mixedteacher.components.distillation_model import DistillationLoss, Features
from anomalib_mixedteacher.components.maps import euclidean_distance, normalized_distance
from anomalib_mixedteacher.errors import ConfigurationError

SCORED = 3  # pool3, pool4, pool5: the score leaves out the shallowest of the trained layers


class MkdLoss(DistillationLoss):
    r"""Difference of value and of direction between the expert's and the cloner's feature maps.

    .. math::  L = \sum_l \frac{1}{N_l} \lVert t_l - s_l \rVert_2^2
               + \lambda \sum_l \left(1 - \frac{t_l \cdot s_l}{\lVert t_l \rVert_2 \lVert s_l \rVert_2}\right)

    over the layers ``l``, each map taken as one vector of its ``N_l`` numbers (Salehi et al. 2021, section 3).

    In the paper, lambda is chosen so that both terms start at the same scale on the untrained cloner. The authors'
    code weighs the value term instead (0.01; 0.5 for MVTec AD): that is ``1 / direction_weight``, 100 and 2 here.

    Args:
        direction_weight: The paper's lambda, positive; ``"auto"`` waits for :meth:`set_direction_weight`.

    Attributes:
        direction_weight: Lambda as a tensor, kept in checkpoints; NaN while it is not known.

    Raises:
        ConfigurationError: If the weight is neither ``"auto"`` nor positive.
    """

    direction_weight: torch.Tensor

    def __init__(self, direction_weight: float | Literal["auto"] = "auto") -> None:
        super().__init__()
        if direction_weight != "auto" and (isinstance(direction_weight, str) or not 0 < direction_weight < torch.inf):
            msg = f"direction_weight must be 'auto' or a positive number, not {direction_weight!r}."
            raise ConfigurationError(msg)
        value = torch.nan if direction_weight == "auto" else float(direction_weight)
        self.register_buffer("direction_weight", torch.tensor(value))

    @torch.no_grad()
    def set_direction_weight(self, features: Iterable[tuple[Features, Features]]) -> None:
        """Weigh the direction term so that it is as large as the value term.

        Args:
            features: The expert's and the untrained cloner's feature maps of one batch of good images after another.
        """
        value = direction = 0.0
        for teacher, student in features:
            values, directions = _terms(teacher, student)
            value += float(values.sum())
            direction += float(directions.sum())
        self.direction_weight.fill_(value / direction)

    def per_image(self, teacher: Features, student: Features) -> torch.Tensor:
        """Compute the training loss of each image.

        Args:
            teacher: The expert's maps behind pool2 to pool5, each of shape ``(B, C, H, W)``.
            student: The cloner's, same shapes.

        Returns:
            Loss of shape ``(B,)``, non-negative.

        Raises:
            ConfigurationError: If the weight is not known yet.
        """
        value, direction = _terms(teacher, student)
        if not torch.compiler.is_compiling() and self.direction_weight.isnan():
            msg = "direction_weight='auto' is found when training starts: train the model first, or give a number."
            raise ConfigurationError(msg)
        return value + self.direction_weight * direction

    def score(self, teacher: Features, student: Features) -> torch.Tensor:
        """Compute the anomaly score of each image: the loss of the last three layers; see :meth:`per_image`."""
        return self.per_image(teacher[-SCORED:], student[-SCORED:])

    def score_gradients(self, teacher: Features, student: Features) -> tuple[Features, Features]:
        """Differentiate :meth:`score` with respect to the feature maps, without autograd.

        Returns:
            Derivatives with respect to the expert's and the cloner's last three maps, each of its map's shape.
        """
        towards_teacher, towards_student = [], []
        for t, s in zip(teacher[-SCORED:], student[-SCORED:], strict=True):
            value = (t - s) * (2 / (t.shape[1] * t.shape[2] * t.shape[3]))
            direction_t, direction_s = _direction_gradients(t, s)
            towards_teacher.append(value + self.direction_weight * direction_t)
            towards_student.append(self.direction_weight * direction_s - value)
        return towards_teacher, towards_student


def _terms(teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute value and direction term of each image, each of shape ``(B,)``."""
    pairs = list(zip(teacher, student, strict=True))
    value = torch.stack([euclidean_distance(t, s).mean(dim=(1, 2)) for t, s in pairs]).sum(dim=0)
    direction = torch.stack([normalized_distance(_as_vector(t), _as_vector(s))[:, 0, 0] for t, s in pairs]).sum(dim=0)
    return value, direction


def _as_vector(maps: torch.Tensor) -> torch.Tensor:
    """Make one position of a map: ``(B, C, H, W)`` to ``(B, C * H * W, 1, 1)``."""
    return maps.flatten(1)[:, :, None, None]


def _direction_gradients(teacher: torch.Tensor, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiate half the squared distance of two unit vectors: what is across each, divided by its length."""
    # the epsilon of F.normalize, which the distance is made with
    lengths = [torch.linalg.vector_norm(maps.flatten(1), dim=1).clamp_min(1e-12) for maps in (teacher, student)]
    length_t, length_s = (length[:, None, None, None] for length in lengths)
    t, s = teacher / length_t, student / length_s
    across_t = (t - s) - t * (t * (t - s)).sum(dim=(1, 2, 3), keepdim=True)
    across_s = (s - t) - s * (s * (s - t)).sum(dim=(1, 2, 3), keepdim=True)
    return across_t / length_t, across_s / length_s
