"""What the models share: teachers and their weights, distances between features, maps, the recipe of training."""

from .distance import normalized_distance
from .feature_extractor import FeatureExtractor, initialize_weights
from .teacher import Teacher

__all__ = ["FeatureExtractor", "Teacher", "initialize_weights", "normalized_distance"]
