"""What the models share: teachers and their weights, distances between features, maps, the recipe of training."""

from .maps import normalized_distance
from .teacher import FeatureExtractor, Teacher
from .weights import initialize_weights

__all__ = ["FeatureExtractor", "Teacher", "initialize_weights", "normalized_distance"]
