"""Networks of MSFD: a frozen ResNet and a student of the same architecture."""

from collections.abc import Sequence

from anomalib_mixedteacher.components.standardized_map import Fusion, Standardize, StandardizedMapModel
from anomalib_mixedteacher.components.teacher import FeatureExtractor, Teacher
from anomalib_mixedteacher.models.msfd.anomaly_map import AnomalyMapGenerator
from anomalib_mixedteacher.models.msfd.upsampling import receptive_fields

NAME = "resnet"


class MsfdModel(StandardizedMapModel):
    """A frozen teacher, a student of the same architecture, and the anomaly map between their levels.

    Arguments are those of :class:`~anomalib_mixedteacher.Msfd`.

    Raises:
        ConfigurationError: If an argument is not one of its choices or out of its range.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[int] = (1, 2),
        cosine_weight: float = 0.5,
        fusion: Fusion = "standardized_sum",
        sigma: float = 4.0,
        tile_size: int | None = None,
        standardize: Standardize = "tile",
    ) -> None:
        names = [f"layer{layer}" for layer in layers]
        student = FeatureExtractor(backbone, names)
        generator = AnomalyMapGenerator(receptive_fields(student), cosine_weight, fusion, sigma)
        super().__init__({NAME: Teacher(backbone, names)}, {NAME: student}, generator, tile_size, standardize)
