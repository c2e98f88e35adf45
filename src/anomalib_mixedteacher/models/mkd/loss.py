"""Distillation loss of MKD, and its derivatives with respect to the feature maps."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from anomalib_mixedteacher.components.distance import euclidean_distance, normalized_distance
from anomalib_mixedteacher.components.distillation_loss import DistillationLoss
from anomalib_mixedteacher.components.distillation_model import Features
from anomalib_mixedteacher.errors import ConfigurationError, DataError

NAME = "vgg"
SCORED = 3  # pool3, pool4, pool5: the score leaves out the shallowest of the trained layers


class MkdLoss(DistillationLoss):
    r"""Difference of value and of direction between the expert's and the cloner's feature maps.

    .. math::  L = \sum_l \frac{1}{N_l} \lVert t_l - s_l \rVert_2^2
               + w \sum_l \left(1 - \frac{t_l \cdot s_l}{\lVert t_l \rVert_2 \lVert s_l \rVert_2}\right)

    over the layers ``l``, each map taken as one vector of its ``N_l`` numbers (Salehi et al. 2021, section 3).

    Two readings of the weight are in use. In the paper, lambda weighs the direction term, and is chosen so that both
    terms start at the same scale on the untrained cloner: ``direction_weight`` is this lambda, ``"auto"`` this choice.
    In the authors' code, lambda weighs the value term instead (0.01, and 0.5 for MVTec AD): it is
    ``1 / direction_weight``, and the whole loss is that many times ours. 0.01 is ``direction_weight=100``, 0.5 is 2.

    Half-precision maps are compared in float32.

    Args:
        direction_weight: Weight of the direction term, positive; ``"auto"`` waits for :meth:`set_direction_weight`.
        direction_only: Leave out the value term; the weight is not used then.

    Attributes:
        direction_weight: The weight as a tensor, kept in checkpoints; NaN while it is not known.

    Raises:
        ConfigurationError: If the weight is neither ``"auto"`` nor positive.
    """

    direction_weight: torch.Tensor

    def __init__(self, direction_weight: float | Literal["auto"] = "auto", direction_only: bool = False) -> None:
        super().__init__()
        automatic = direction_weight == "auto"
        if not automatic and (isinstance(direction_weight, str) or not 0 < direction_weight < float("inf")):
            msg = f"direction_weight must be 'auto' or a positive number, not {direction_weight!r}."
            raise ConfigurationError(msg)
        self.direction_only = direction_only
        self.register_buffer("direction_weight", torch.tensor(torch.nan if automatic else float(direction_weight)))

    @property
    def needs_direction_weight(self) -> bool:
        """Whether :meth:`set_direction_weight` has to be called before the loss can be computed."""
        return not self.direction_only and bool(self.direction_weight.isnan())

    @torch.no_grad()
    def set_direction_weight(self, features: Iterable[tuple[Features, Features]]) -> None:
        """Weigh the direction term so that it is as large as the value term.

        Args:
            features: The expert's and the untrained cloner's feature maps of one batch of good images after another.

        Raises:
            DataError: If one of the terms is 0 or not finite, so that there is no such weight.
        """
        value = direction = 0.0
        for teacher, student in features:
            values, directions = _terms(teacher[NAME], student[NAME])
            value += float(values.sum())
            direction += float(directions.sum())
        if not (0 < value < float("inf") and 0 < direction < float("inf")):
            msg = (
                f"The untrained cloner differs from the expert by {value:g} in value and {direction:g} in direction, "
                "from which direction_weight='auto' cannot be found: check the training images, or give a number."
            )
            raise DataError(msg)
        self.direction_weight.fill_(value / direction)

    def per_image(self, teacher: Features, student: Features) -> dict[str, torch.Tensor]:
        """Compute the training loss of each image.

        Args:
            teacher: The expert's maps behind pool2 to pool5 as ``"vgg"``, each of shape ``(B, C, H, W)``.
            student: The cloner's, same shapes.

        Returns:
            Loss of shape ``(B,)`` as ``"vgg"``, non-negative.

        Raises:
            ConfigurationError: If the weight is not known yet.
        """
        return {NAME: self._total(teacher[NAME], student[NAME])}

    def score(self, teacher: Features, student: Features) -> torch.Tensor:
        """Compute the anomaly score of each image: the loss without its shallowest layer.

        Args:
            teacher: The expert's maps as ``"vgg"``, of which the last three, pool3 to pool5, are compared.
            student: The cloner's, same shapes.

        Returns:
            Score of shape ``(B,)``, non-negative.

        Raises:
            ConfigurationError: If the weight is not known yet.
        """
        return self._total(teacher[NAME][-SCORED:], student[NAME][-SCORED:])

    def score_gradient(self, teacher: Features, student: Features) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Differentiate :meth:`score` with respect to the feature maps, without autograd.

        Args:
            teacher: See :meth:`score`.
            student: See :meth:`score`.

        Returns:
            Derivatives of each image's score with respect to the expert's and the cloner's last three maps, each of its
            map's shape.
        """
        teacher_gradients, student_gradients = [], []
        for t, s in zip(teacher[NAME][-SCORED:], student[NAME][-SCORED:], strict=True):
            towards_t, towards_s = _direction_gradient(t, s)
            if not self.direction_only:
                difference = (t - s) * (2 / (t.shape[1] * t.shape[2] * t.shape[3]))
                towards_t = difference + self.direction_weight * towards_t
                towards_s = self.direction_weight * towards_s - difference
            teacher_gradients.append(towards_t)
            student_gradients.append(towards_s)
        return teacher_gradients, student_gradients

    def _total(self, teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]) -> torch.Tensor:
        value, direction = _terms(teacher, student)
        if self.direction_only:
            return direction
        if not torch.compiler.is_compiling() and self.needs_direction_weight:
            msg = (
                "direction_weight='auto' is found when training starts: train the model first, give a trained "
                "checkpoint, or give a number."
            )
            raise ConfigurationError(msg)
        return value + self.direction_weight * direction


def _terms(teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute value and direction term of each image, each of shape ``(B,)``."""
    pairs = list(zip(teacher, student, strict=True))
    value = torch.stack([euclidean_distance(t, s).mean(dim=(1, 2)) for t, s in pairs]).sum(dim=0)
    direction = torch.stack([normalized_distance(_as_vector(t), _as_vector(s))[:, 0, 0] for t, s in pairs]).sum(dim=0)
    return value, direction


def _as_vector(maps: torch.Tensor) -> torch.Tensor:
    """Make one position of a map: ``(B, C, H, W)`` to ``(B, C * H * W, 1, 1)``."""
    return maps.flatten(1)[:, :, None, None]


def _direction_gradient(teacher: torch.Tensor, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiate half the squared distance of two unit vectors: what is across each, divided by its length."""
    vectors = [maps.flatten(1) for maps in (teacher, student)]
    # the epsilon of F.normalize, which the distance is made with
    lengths = [torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1e-12) for v in vectors]
    t, s = (v / length for v, length in zip(vectors, lengths, strict=True))
    across_t = (t - s) - t * (t * (t - s)).sum(dim=1, keepdim=True)
    across_s = (s - t) - s * (s * (s - t)).sum(dim=1, keepdim=True)
    return (across_t / lengths[0]).view_as(teacher), (across_s / lengths[1]).view_as(student)
