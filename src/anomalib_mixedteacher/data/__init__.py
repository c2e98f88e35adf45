"""Data sets that anomalib does not have: procedural textures, magnetic tiles, and torchvision's as one-class tasks."""

# The plugin's start-up hook registers this package's models as soon as anomalib.models is imported. Importing it first
# keeps that from happening halfway through the imports below.
import anomalib.models  # noqa: F401

from anomalib_mixedteacher.data.magnetic_tile import MagneticTile, MagneticTileDataset
from anomalib_mixedteacher.data.one_class import OneClass, OneClassDataset
from anomalib_mixedteacher.data.synthetic_textures import SyntheticTextures, SyntheticTexturesDataset

__all__ = [
    "MagneticTile",
    "MagneticTileDataset",
    "OneClass",
    "OneClassDataset",
    "SyntheticTextures",
    "SyntheticTexturesDataset",
]
