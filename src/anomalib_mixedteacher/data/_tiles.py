"""Finding the shots of magnetic tiles on disk, and splitting them without parting the shots of one tile.

Every tile was photographed six times or more and the shots are near-duplicates, so a split by image puts copies of
training images into the test set. Here the unit of every split is the *group*: shots that may show one tile.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anomalib.data.utils import LabelName, Split

from anomalib_mixedteacher.errors import DataError

GOOD = "good"
DEFECT_KINDS = ("blowhole", "break", "crack", "fray", "uneven")
"""Labels of the defects; the folder of ``crack`` is ``MT_Crack``."""

_SHOTS = 6
# The ids of one tile's shots lie close together. A larger gap ends a group, except that a run which is no whole number
# of six-shot series has lost shots, and the rest of its series may follow after a wider gap (thumbnails confirm it).
_GAP = 250
_GAP_IN_SERIES = 1000
# First and last ids of two series that show one tile, the second taken much later; all are good shots. Found in the
# published data by correlating every two shots with lighting and machining marks filtered out (also turned by 180
# degrees, as the second series of the third pair is), and confirmed by eye on stains and scratches.
_REPEATS = (
    ((5874, 5959), (13526, 13689)),
    ((306586, 306696), (309352, 309443)),
    ((337646, 337757), (349824, 349930)),
    ((355636, 355732), (358102, 358179)),
)

_NAME = re.compile(r"exp(\d+)_num_(\d+)", re.IGNORECASE)
_SOURCE = (
    "get the data set from github.com/abin24/Magnetic-tile-defect-datasets (Huang, Qiu, Yuan: Surface defect saliency "
    "of magnetic tile, The Visual Computer, 2020) and pass its folder as root= (--root of a benchmark)"
)


def find_tiles(root: Path) -> pd.DataFrame:
    """List all shots below the data set's folder, in an order that no file system decides.

    Args:
        root (Path): Folder that holds ``MT_Free``, ``MT_Crack`` and so on (in any letter case).

    Returns:
        pd.DataFrame: One row per shot, sorted by id: ``image_path``, ``label`` (``good`` or the kind of defect),
            ``label_index``, ``mask_path`` (None for good shots) and ``group``.

    Raises:
        DataError: If the folder, its good or its defect images, or a mask is missing, or a name has no id.
    """
    if not root.is_dir():
        msg = f"The folder {root} does not exist: {_SOURCE}."
        raise DataError(msg)
    rows = []
    for label in (GOOD, *DEFECT_KINDS):
        folder = _child(_child(root, "MT_Free" if label == GOOD else f"MT_{label}"), "Imgs")
        files = {path.name.lower(): path for path in folder.iterdir()} if folder else {}
        for name, path in files.items():
            if Path(name).suffix in (".jpg", ".jpeg"):
                rows.append((_shot_id(path), label, path, files.get(f"{Path(name).stem}.png")))
    for wanted, folders in (
        ({GOOD}, "MT_Free"),
        (set(DEFECT_KINDS), "MT_Blowhole, MT_Break, MT_Crack, MT_Fray or MT_Uneven"),
    ):
        if not any(row[1] in wanted for row in rows):
            msg = f"No images exp<k>_num_<id>.jpg in the folder Imgs of {folders} below {root}: {_SOURCE}."
            raise DataError(msg)
    for _, label, path, mask in rows:
        if label != GOOD and mask is None:
            msg = f"The image {path} has no mask {path.stem}.png beside it: restore the mask or remove the image."
            raise DataError(msg)
    rows.sort(key=lambda row: (row[0], row[1], row[2].name))
    ids = [row[0] for row in rows]
    groups = merge_repeats(ids, group_ids(ids))
    # Objects, or newer versions of pandas turn the missing masks into NaN.
    return pd.DataFrame(
        {
            "image_path": [str(path) for _, _, path, _ in rows],
            "label": [label for _, label, _, _ in rows],
            "label_index": [int(LabelName.NORMAL if row[1] == GOOD else LabelName.ABNORMAL) for row in rows],
            "mask_path": pd.Series([None if row[1] == GOOD else str(row[3]) for row in rows], dtype=object),
            "group": groups,
        }
    )


def _child(folder: Path | None, name: str) -> Path | None:
    """Find a subfolder by its name in any letter case: copies of the data set differ."""
    if folder is None:
        return None
    return next(
        (path for path in sorted(folder.iterdir()) if path.name.lower() == name.lower() and path.is_dir()), None
    )


def _shot_id(path: Path) -> int:
    """Read the id from a file name."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        msg = f"The image {path} is not named exp<k>_num_<id>.jpg, so its tile is unknown: rename or remove it."
        raise DataError(msg)
    return int(match[2])


def group_ids(ids: Sequence[int]) -> list[int]:
    """Number the groups of shots that may show one tile.

    Args:
        ids (Sequence[int]): Ids of all shots, ascending.

    Returns:
        list[int]: Group of each shot, counted from 0.
    """
    runs: list[list[int]] = []
    for shot in ids:
        if runs and shot - runs[-1][-1] <= _GAP:
            runs[-1].append(shot)
        else:
            runs.append([shot])
    groups: list[int] = []
    previous: list[int] = []
    for run in runs:
        incomplete = len(run) % _SHOTS or len(previous) % _SHOTS
        joined = bool(previous) and incomplete and run[0] - previous[-1] <= _GAP_IN_SERIES
        number = (groups[-1] if joined else groups[-1] + 1) if groups else 0
        groups.extend([number] * len(run))
        previous = previous + run if joined else run
    return groups


def merge_repeats(ids: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Make one group of those that show one tile although their ids lie far apart.

    Args:
        ids (Sequence[int]): Ids of all shots, ascending.
        groups (Sequence[int]): Group of each shot, from :func:`group_ids`.

    Returns:
        list[int]: Group of each shot, counted from 0. Of a copy that lacks one of two series nothing is merged.
    """
    merged = list(groups)
    for series in _REPEATS:
        found = [{g for shot, g in zip(ids, merged, strict=True) if first <= shot <= last} for first, last in series]
        if all(found):
            same = set.union(*found)
            merged = [min(same) if group in same else group for group in merged]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(merged))}
    return [numbers[group] for group in merged]


def split_tiles(tiles: pd.DataFrame, test_ratio: float, seed: int) -> pd.DataFrame:
    """Choose the groups that train.

    Only a group without any defect trains; a group with one is tested as a whole, its good shots included.

    Args:
        tiles (pd.DataFrame): All shots, from :func:`find_tiles`.
        test_ratio (float): Share of the images in all-good groups that is tested, above 0 and below 1.
        seed (int): Seed of the choice.

    Returns:
        pd.DataFrame: The shots with a column ``split``: ``train`` or ``test``.

    Raises:
        DataError: If no group is free of defects, so that nothing could train.
    """
    with_defect = set(tiles.group[tiles.label != GOOD])
    good = tiles[~tiles.group.isin(with_defect)]
    if good.empty:
        msg = "Every group of shots holds a defect, so nothing is left to train on: add good images of other tiles."
        raise DataError(msg)
    tested = with_defect | hold_out(good, test_ratio, seed)
    return tiles.assign(split=[(Split.TEST if group in tested else Split.TRAIN).value for group in tiles.group])


def hold_out(samples: pd.DataFrame, ratio: float, seed: int) -> set[int]:
    """Choose whole groups, kind by kind, that hold about the given share of the images.

    Args:
        samples (pd.DataFrame): Shots with the columns ``group`` and ``label``.
        ratio (float): Share of the images to hold out, above 0 and below 1.
        seed (int): Seed of the choice.

    Returns:
        set[int]: The groups held out. Of a kind with two groups or more, at least one is held out and one is left.
    """
    count = samples.label.value_counts()
    sizes: dict[str, list[tuple[int, int]]] = {}
    for group, shots in samples.groupby("group"):
        # A group of several kinds counts for its rarest defect, which has the fewest other groups to offer.
        kind = min(set(shots.label), key=lambda label: (label == GOOD, count[label], label))
        sizes.setdefault(kind, []).append((int(str(group)), len(shots)))
    held: set[int] = set()
    for kind, groups in sizes.items():
        # One stream per kind: leaving out a kind does not reshuffle the others.
        order = np.random.default_rng([seed, zlib.crc32(kind.encode())]).permutation(len(groups))
        target = ratio * sum(size for _, size in groups)
        taken = 0
        for place, index in enumerate(order[:-1]):
            group, size = groups[index]
            if place == 0 or taken + size / 2 <= target:
                held.add(group)
                taken += size
    return held
