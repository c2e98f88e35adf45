"""Generated stand-ins for public data sets: their folders and file names, with a few tiny textures inside.

They show that a benchmark runs from the first image to its last table where the data cannot be had. What a model scores
on them says nothing about the data set.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalib_mixedteacher.benchmark.layouts import LAYOUTS
from anomalib_mixedteacher.data._generate import render
from anomalib_mixedteacher.data._tiles import DEFECT_KINDS
from anomalib_mixedteacher.data.textures import FAMILIES
from anomalib_mixedteacher.errors import ConfigurationError

SIDE = 64
"""Side of the images in pixels."""

_TRAIN, _TEST = 6, 4
_SHOTS, _GOOD_TILES = 6, 5  # of a tile; every tile of the published data was photographed six times
_NEXT_TILE = 5000  # ids so far apart belong to different tiles

# the generator's nearest kin; any other category gets the first
_FAMILY = {"carpet": "weave", "grid": "grid", "leather": "cells", "tile": "speckle", "wood": "grain"}
_DEFECTS = {"MVTecAD": {"hole": "hole", "scratch": "scratch"}, "BTech": {"ko": "stain"}}
_TILE_DEFECTS = dict(zip(DEFECT_KINDS, ("hole", "misaligned_patch", "scratch", "stain", "contrast_blob"), strict=True))


def make_stand_ins(data_class: str, categories: Sequence[str], folder: Path) -> None:
    """Write a stand-in for a data set; a category that is there is left as it is.

    Args:
        data_class: Class of the datamodule, with or without its package: ``MVTecAD``, ``BTech`` or ``MagneticTile``.
        categories: Its categories, where it has any.
        folder: Where to write it; gets what the data set's own folder has.

    Raises:
        ConfigurationError: If there is no stand-in for the data set.
    """
    name = data_class.rpartition(".")[2]
    if name not in {*LAYOUTS, "MagneticTile"}:
        msg = f"There are no stand-ins for {name}: a dry run takes {', '.join(LAYOUTS)} or MagneticTile."
        raise ConfigurationError(msg)
    if name == "MagneticTile":
        parts: dict[Path, Callable[[Path], None]] = {folder: _make_tiles}
    else:
        parts = {folder / category: partial(_make_category, name) for category in categories}
    for part, make in parts.items():
        if part.is_dir():
            continue
        unfinished = part.with_name(f".{part.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.rename(part)


def _make_category(name: str, folder: Path) -> None:
    layout = LAYOUTS[name]
    family = _FAMILY.get(folder.name.lstrip("."), next(iter(FAMILIES)))
    for split, images in (("train", _TRAIN), ("test", _TEST)):
        for index in range(images):
            image, _ = _draw(family, split, None, index)
            _save(folder / split / layout.good / f"{index:03}.png", image)
    for kind, defect in _DEFECTS[name].items():
        for index in range(_TEST):
            image, mask = _draw(family, "test", defect, index)
            _save(folder / "test" / kind / f"{index:03}.png", image)
            _save(folder / "ground_truth" / kind / layout.masks[0].format(stem=f"{index:03}"), mask)


def _make_tiles(folder: Path) -> None:
    tiles = count(_NEXT_TILE, _NEXT_TILE)
    for kind, defect in {"Free": None, **_TILE_DEFECTS}.items():
        for number in [next(tiles) for _ in range(_GOOD_TILES if defect is None else 1)]:
            for shot in range(_SHOTS):
                image, mask = _draw("speckle", "test", defect, number + shot)
                path = folder / f"MT_{kind.capitalize()}" / "Imgs" / f"exp{shot + 1}_num_{number + shot}.jpg"
                _save(path, image.mean(axis=-1).astype(np.uint8))
                _save(path.with_suffix(".png"), mask)


def _draw(family: str, split: str, defect: str | None, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    image, mask = render(family, SIDE, 0, split, defect, index)
    return np.round(image * 255).astype(np.uint8), mask.astype(np.uint8) * 255


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
