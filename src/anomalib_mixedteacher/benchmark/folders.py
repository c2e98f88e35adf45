"""Arguments of anomalib's Folder for the two usual layouts of a folder of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib_mixedteacher.errors import DataError


def folder_sets(root: Path, categories: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Find the data sets in a folder.

    Args:
        root: A folder of images, or one of such folders.
        categories: Its subfolders to take; by default itself, or else all subfolders in one of the layouts.

    Returns:
        Arguments of Folder by category; the category of ``root`` itself is ``""``.

    Raises:
        DataError: If a folder is in none of the layouts, or has masks of some kinds of defect only.
    """
    if categories is None and (arguments := _arguments(root)):
        return {"": arguments}
    found = {name: _arguments(root / name) for name in categories or sorted(path.name for path in root.glob("[!.]*/"))}
    found = {name: arguments for name, arguments in found.items() if arguments or categories}
    if not found or not all(found.values()):
        place = next((root / name for name, arguments in found.items() if not arguments), root)
        msg = f"{place} has no good images where they are looked for: put them into good (and defects into bad, "
        msg += "masks into mask), or into train/good, test/KIND and ground_truth/KIND as MVTec AD has them."
        raise DataError(msg)
    return found


def _arguments(root: Path) -> dict[str, Any]:
    """Give Folder's arguments, empty where the layout is another one."""
    places: dict[str, Any] = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "mask"}
    if (root / "train" / "good").is_dir():
        kinds = sorted(path.name for path in root.glob("test/[!.]*/") if path.name != "good")
        masked = [kind for kind in kinds if (root / "ground_truth" / kind).is_dir()]
        if masked and (bare := [kind for kind in kinds if kind not in masked]):
            msg = f"{root / 'ground_truth'} has no masks of {bare[0]}: draw them, or take the other kinds' masks away."
            raise DataError(msg)
        places = {"normal_dir": "train/good", "normal_test_dir": "test/good"}
        lists = {"abnormal_dir": [f"test/{kind}" for kind in kinds], "mask_dir": [f"ground_truth/{k}" for k in masked]}
    elif (root / "good").is_dir():
        lists = {}
    else:
        return {}
    there = {name: place for name, place in places.items() if (root / place).is_dir()}
    return {"root": str(root), **there, **{name: folders for name, folders in lists.items() if folders}}
