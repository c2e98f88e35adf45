"""Groups of shots that show one magnetic tile: the unit of every split.

Every tile was photographed six times or more and the shots are near-duplicates, so a split by image puts copies of
training images into the test set.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anomalib_mixedteacher.data.base import GOOD
from anomalib_mixedteacher.errors import DataError

_SHOTS = 6
# A larger gap between ids ends a group, except that a run which is no whole number
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


def shot_id(path: Path) -> int:
    """Read the id from a file name.

    Args:
        path (Path): Image file, ``exp<k>_num_<id>.jpg``.

    Returns:
        int: The id; those of one tile's shots lie close together.

    Raises:
        DataError: If the name has no id.
    """
    match = _NAME.fullmatch(path.stem)
    if match is None:
        msg = f"The image {path} is not named exp<k>_num_<id>.jpg, so its tile is unknown: rename or remove it."
        raise DataError(msg)
    return int(match[2])


def group_shots(ids: Sequence[int]) -> list[int]:
    """Number the groups of shots that may show one tile.

    Args:
        ids (Sequence[int]): Ids of all shots, ascending.

    Returns:
        list[int]: Group of each shot, counted from 0.
    """
    runs = [run.tolist() for run in np.split(np.array(ids, int), np.flatnonzero(np.diff(ids) > _GAP) + 1)]
    groups: list[list[int]] = []
    for run in runs:
        incomplete = groups and (len(run) % _SHOTS or len(groups[-1]) % _SHOTS)
        if incomplete and run[0] - groups[-1][-1] <= _GAP_IN_SERIES:
            groups[-1] += run
        else:
            groups.append(run)
    number = {shot: group for group, shots in enumerate(groups) for shot in shots}
    for series in _REPEATS:
        found = [{number[shot] for shot in ids if first <= shot <= last} for first, last in series]
        if all(found):  # else it is a copy that lacks one of them
            same = set.union(*found)
            number = {shot: min(same) if group in same else group for shot, group in number.items()}
    _, numbers = np.unique([number[shot] for shot in ids], return_inverse=True)
    return [int(group) for group in numbers]


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
