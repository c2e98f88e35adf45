"""What the models share: teachers and their weights, feature distance, map smoothing, start-up checks."""

# The start-up hook registers our models when anomalib.models is imported. Importing it here, first, keeps that
# from happening halfway through the import of one of our own modules.
import anomalib.models  # noqa: F401

from .distance import normalized_distance
from .feature_extractor import FeatureExtractor, initialize_weights
from .smoothing import gaussian_smoothing
from .teacher import Teacher

__all__ = ["FeatureExtractor", "Teacher", "gaussian_smoothing", "initialize_weights", "normalized_distance"]
