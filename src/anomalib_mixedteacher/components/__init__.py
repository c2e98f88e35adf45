"""What the models share: teachers and their weights, feature distance, map smoothing, start-up checks.

Teachers, weights and distance need torch and timm only, so that teachers can be pre-trained where anomalib is not
installed. The modules that build on anomalib are imported by their own names.
"""

from .distance import normalized_distance
from .feature_extractor import FeatureExtractor, initialize_weights
from .teacher import Teacher

__all__ = ["FeatureExtractor", "Teacher", "initialize_weights", "normalized_distance"]
