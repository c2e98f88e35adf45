"""Networks of MSFD: a frozen ResNet and a student of the same architecture."""

from collections.abc import Sequence

import torch
from anomalib.data import InferenceBatch

from anomalib_mixedteacher.components.distillation_model import DistillationModel, Features
from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor
from anomalib_mixedteacher.components.receptive_field import receptive_fields
from anomalib_mixedteacher.components.teacher import Teacher
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.msfd.anomaly_map import AnomalyMapGenerator, Combination, Upsampling

BACKBONES = ("resnet18", "wide_resnet50_2")


class MsfdModel(DistillationModel):
    """A frozen teacher, a student of the same architecture, and the anomaly map between their levels.

    From the abstract (Yao et al. 2021): teacher and student of one architecture, several intermediate levels, the
    combined distance, the Gaussian up-sampling. Our choices, since neither code nor more of the paper is at hand: the
    backbone, the levels, a student that starts at random, the weight of the two distances, the Gaussian's width, how
    levels are combined, and the map's maximum as the image's score.

    Args:
        backbone: One of :data:`BACKBONES`.
        layers: Stages of the ResNet (1 is ``layer1``), 1 to 4; their order does not matter.
        cosine_weight: See :func:`~anomalib_mixedteacher.models.msfd.loss.combined_distance`.
        combination: See :class:`AnomalyMapGenerator`.
        upsampling: See :class:`AnomalyMapGenerator`.
        sigma_ratio: See :class:`AnomalyMapGenerator`.

    Raises:
        ConfigurationError: If an argument is not one of its choices or out of its range.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[int] = (1, 2, 3),
        cosine_weight: float = 0.5,
        combination: Combination = "product",
        upsampling: Upsampling = "gaussian",
        sigma_ratio: float = 1 / 12,
    ) -> None:
        if backbone not in BACKBONES:
            msg = f"Unknown backbone {backbone!r}; choose one of {', '.join(BACKBONES)}."
            raise ConfigurationError(msg)
        if not layers or not set(layers) <= {1, 2, 3, 4}:
            msg = f"layers={list(layers)} must be one or more of 1, 2, 3, 4 (layer1 to layer4)."
            raise ConfigurationError(msg)
        layers = sorted(set(layers))
        # The teacher first: under the global seed 0 the first network drawn equals the teacher "random".
        teacher, student = Teacher(backbone, layers), FeatureExtractor(backbone, layers)
        super().__init__({"resnet": teacher}, {"resnet": student})
        self.anomaly_map_generator = AnomalyMapGenerator(
            receptive_fields(student), cosine_weight, combination, upsampling, sigma_ratio
        )

    def predict(self, teacher: Features, student: Features, images: torch.Tensor) -> InferenceBatch:
        """Compute predictions from features.

        Args:
            teacher: The teacher's feature maps, as :meth:`features` returns them.
            student: The student's feature maps.
            images: The images that gave them, of shape ``(B, 3, H, W)``.

        Returns:
            Anomaly map of shape ``(B, 1, H, W)``, and score of shape ``(B, 1)``, the maximum of the map.
        """
        anomaly_map = self.anomaly_map_generator(teacher, student, (images.shape[-2], images.shape[-1]))
        return InferenceBatch(anomaly_map=anomaly_map, pred_score=anomaly_map.amax(dim=(-2, -1)))
