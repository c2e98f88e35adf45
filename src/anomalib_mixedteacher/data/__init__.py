"""Data sets that anomalib lacks: procedural textures, magnetic tiles, solar cells, torchvision's as one-class tasks."""

import anomalib.models  # noqa: F401  # makes the start-up hook register the data sets too

from anomalib_mixedteacher.data.elpv import Elpv
from anomalib_mixedteacher.data.magnetic_tile import MagneticTile
from anomalib_mixedteacher.data.one_class import OneClass
from anomalib_mixedteacher.data.synthetic_textures import SyntheticTextures

__all__ = ["Elpv", "MagneticTile", "OneClass", "SyntheticTextures"]
