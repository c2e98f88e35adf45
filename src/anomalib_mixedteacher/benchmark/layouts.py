"""Folders and files of the public data sets: one definition for checking a copy and for making stand-ins.

anomalib fetches MVTec AD and BTAD when the folder of a category is missing, and fails within a training when a part of
it is. Whether they are whole is found out here before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_mixedteacher.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Layout of one category: ``train/<good>``, ``test/<good>``, ``test/<kind>``, ``ground_truth/<kind>``.

    Attributes:
        title: Name of the data set.
        good: Folder of the good images.
        masks: Names that a mask may have, ``{stem}`` being its image's; the first is the published one.
        suffixes: What image files end in.
    """

    title: str
    good: str
    masks: Sequence[str]
    suffixes: Sequence[str]

    def images(self, folder: Path, pattern: str = "*") -> list[Path]:
        """List the images in a folder, or in those of its subfolders that a pattern names; none if there are none."""
        return sorted(path for path in folder.glob(pattern) if path.suffix in self.suffixes)

    def check(self, folder: Path) -> None:
        """Check that a category has good images to train on, images of both kinds to test on, and masks.

        Args:
            folder: The category's folder.

        Raises:
            DataError: If something is missing.
        """
        bad = [path for path in self.images(folder / "test", "*/*") if path.parent.name != self.good]
        places = {
            f"{folder / 'train' / self.good}": self.images(folder / "train" / self.good),
            f"{folder / 'test' / self.good}": self.images(folder / "test" / self.good),
            f"the defects' folders below {folder / 'test'}": bad,
        }
        if empty := [place for place, images in places.items() if not images]:
            msg = (
                f"There are no {' or '.join(self.suffixes)} images in {empty[0]}: give the folder of the unpacked "
                f"{self.title}, with one folder for each category, as --root."
            )
            raise DataError(msg)
        for path in bad:
            names = [mask.format(stem=path.stem) for mask in self.masks]
            place = folder / "ground_truth" / path.parent.name
            if not any((place / name).is_file() for name in names):
                msg = f"The image {path} has no mask {place / names[0]}: unpack {self.title} again."
                raise DataError(msg)


LAYOUTS = {
    "MVTecAD": Layout("MVTec AD", "good", ("{stem}_mask.png", "{stem}.png"), (".png",)),
    "BTech": Layout("BTAD", "ok", ("{stem}.png",), (".bmp", ".png")),
}
"""Layouts by the class of the datamodule."""


def check_layout(data_class: str, root: Path, category: str) -> None:
    """Check that a public data set is where it is said to be, and whole.

    Args:
        data_class: Class of the datamodule, with or without its package; others than ``MVTecAD``, ``BTech`` and
            ``MagneticTile`` are not checked.
        root: The data set's folder.
        category: The category, where the data set has any.

    Raises:
        DataError: If something is missing.
    """
    name = data_class.rpartition(".")[2]
    if name in LAYOUTS:
        LAYOUTS[name].check(root / category)
    elif name == "MagneticTile":
        from anomalib_mixedteacher.data._tiles import find_tiles  # imports anomalib, which takes seconds

        find_tiles(root)
