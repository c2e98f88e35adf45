"""Magnetic-tile surface defects as an anomalib data set, split by tile.

Reference:
    Yibin Huang, Congying Qiu, Kui Yuan: Surface defect saliency of magnetic tile. The Visual Computer, 2020.
    Data: github.com/abin24/Magnetic-tile-defect-datasets (free to use with citation).
"""

from collections.abc import Sequence
from pathlib import Path

from anomalib import TaskType
from anomalib.data import AnomalibDataset
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from torchvision.transforms.v2 import Transform

from anomalib_mixedteacher.data._checks import CheckedItems, check_ratio, check_val_split
from anomalib_mixedteacher.data._tiles import DEFECT_KINDS, GOOD, find_tiles, hold_out, split_tiles
from anomalib_mixedteacher.errors import ConfigurationError, DataError

DEFAULT_ROOT = "./datasets/MagneticTile"


class MagneticTileDataset(CheckedItems):
    """Shots of magnetic tiles; the shots of one tile are all in training or all in the test.

    The samples carry the kind (``good``, ``blowhole``, ``break``, ``crack``, ``fray``, ``uneven``) in the column
    ``label`` and the tile group in the column ``group``. A few ``uneven`` images have an empty mask in the published
    data; they count as defect images without a defect pixel.

    Args:
        root (Path | str): Folder that holds ``MT_Free``, ``MT_Crack`` and so on.
            Defaults to ``"./datasets/MagneticTile"``.
        defects (Sequence[str] | None): Kinds of defect to test, in any letter case. Defaults to ``None``: all.
        test_split_ratio (float): Share of the images in all-good groups that is tested. Defaults to ``0.4``.
        seed (int): Seed of the split, 0 or more. Defaults to ``0``.
        augmentations (Transform | None): Augmentations of images and masks. Defaults to ``None``.
        split (str | Split | None): ``train``, ``test``, or None for both. Defaults to ``None``.

    Raises:
        ConfigurationError: If a kind of defect is unknown, or the ratio or the seed is out of range.
        DataError: If the folder is not the published data set, or lacks a kind that was asked for.
    """

    def __init__(
        self,
        root: Path | str = DEFAULT_ROOT,
        defects: Sequence[str] | None = None,
        test_split_ratio: float = 0.4,
        seed: int = 0,
        augmentations: Transform | None = None,
        split: str | Split | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        kinds = _check_arguments(defects, test_split_ratio, seed)
        tiles = split_tiles(find_tiles(Path(root)), test_split_ratio, seed)
        missing = sorted(set(kinds) - set(tiles.label)) if defects is not None else []
        if missing:
            msg = f"No images of {', '.join(missing)} below {root}: leave the kind out of defects= or add its images."
            raise DataError(msg)
        # Filtered after the split: which kinds are tested does not change what trains.
        tiles = tiles[tiles.label.isin([GOOD, *kinds])]
        if split is not None:
            tiles = tiles[tiles.split == Split(split).value]
        tiles = tiles.reset_index(drop=True)
        tiles.attrs["task"] = TaskType.SEGMENTATION.value
        self.samples = tiles


class MagneticTile(AnomalibDataModule):
    """Datamodule of the magnetic-tile data set, split by groups of shots of one tile.

    Every tile was photographed six times, four of them twice so. Groups never span training, validation and test, so
    results here are stricter than results on a split by image.

    Args:
        root (Path | str): Folder that holds ``MT_Free``, ``MT_Crack`` and so on.
            Defaults to ``"./datasets/MagneticTile"``.
        defects (Sequence[str] | None): Kinds of defect to test: ``blowhole``, ``break``, ``crack``, ``fray``,
            ``uneven``, in any letter case. Defaults to ``None``: all.
        train_batch_size (int): Training batch size. Defaults to ``8``.
        eval_batch_size (int): Validation and test batch size. Images differ in size: a batch above 1 needs the resize
            of the model's pre-processor, or one among the augmentations. Defaults to ``8``.
        num_workers (int): Worker processes per data loader. Defaults to ``0``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where no specific ones are given. Defaults to ``None``.
        test_split_mode (TestSplitMode | str): ``from_dir`` tests on the defects, ``synthetic`` on defects that
            anomalib paints on good test images. Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio (float): Share of the images in all-good groups that is tested; the others train. Good images
            in a group with a defect are always tested. Defaults to ``0.4``.
        val_split_mode (ValSplitMode | str): ``from_test`` and ``from_train`` hold out whole groups, each kind in both
            halves where it has two groups; ``synthetic`` paints on good groups held out of training.
            Defaults to ``ValSplitMode.FROM_TEST``.
        val_split_ratio (float): Share of the test (or training) images held out. Defaults to ``0.5``.
        seed (int): Seed of the split, 0 or more; the same on each machine. Defaults to ``0``.

    Raises:
        ConfigurationError: If an argument is out of range.
        DataError: If the data are missing or too few for the split (raised at setup).

    Example:
        >>> from anomalib_mixedteacher.data import MagneticTile
        >>> datamodule = MagneticTile(root="./datasets/MagneticTile", defects=["crack", "blowhole"])
        >>> datamodule.setup()  # doctest: +SKIP
    """

    def __init__(
        self,
        root: Path | str = DEFAULT_ROOT,
        defects: Sequence[str] | None = None,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.4,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TEST,
        val_split_ratio: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        _check_arguments(defects, test_split_ratio, seed)
        check_val_split(self)
        self.root = Path(root)
        self.defects = defects
        self._ratio_and_seed = (test_split_ratio, seed)

    def _setup(self, _stage: str | None = None) -> None:
        """Set up the training and the test shots."""
        ratio, seed = self._ratio_and_seed
        self.train_data = MagneticTileDataset(self.root, self.defects, ratio, seed, split=Split.TRAIN)
        self.test_data = MagneticTileDataset(self.root, self.defects, ratio, seed, split=Split.TEST)

    def _create_test_split(self) -> None:
        """Make the test set; anomalib would take single images from training if no good one is tested."""
        if self.test_split_mode == TestSplitMode.FROM_DIR:
            return
        if not self.test_data.has_normal:
            msg = "No group of good images is left for the test: add good images of another tile."
            raise DataError(msg)
        super()._create_test_split()

    def _create_val_split(self) -> None:
        """Make the validation set from whole groups."""
        if self.val_split_mode == ValSplitMode.FROM_TEST:
            if self.test_split_mode != TestSplitMode.FROM_DIR:
                msg = (
                    "A painted test set has no groups to share out: set val_split_mode to 'synthetic' or 'from_train'."
                )
                raise ConfigurationError(msg)
            self.test_data, self.val_data = self._part(self.test_data)
        elif self.val_split_mode == ValSplitMode.FROM_TRAIN:
            self.train_data, self.val_data = self._part(self.train_data)
        elif self.val_split_mode == ValSplitMode.SYNTHETIC:
            self.train_data, held_out = self._part(self.train_data)
            self.val_data = SyntheticAnomalyDataset.from_dataset(held_out)
        else:
            super()._create_val_split()

    def _part(self, dataset: AnomalibDataset) -> tuple[AnomalibDataset, AnomalibDataset]:
        """Part a data set by groups into the larger share and the validation share."""
        held = dataset.samples.group.isin(hold_out(dataset.samples, self.val_split_ratio, self._ratio_and_seed[1]))
        if not held.any():
            msg = (
                f"val_split_mode '{self.val_split_mode.value}' needs images of a second tile to hold out: add some, or "
                "set val_split_mode to 'same_as_test'."
            )
            raise DataError(msg)
        return dataset.subsample(held.index[~held].tolist()), dataset.subsample(held.index[held].tolist())


def _check_arguments(defects: Sequence[str] | None, test_split_ratio: float, seed: int) -> tuple[str, ...]:
    """Check what the data set and the datamodule share, and give the kinds of defect in lower case."""
    check_ratio("test_split_ratio", test_split_ratio)
    if seed < 0:
        msg = f"seed is {seed}: set it to 0 or more."
        raise ConfigurationError(msg)
    if defects is None:
        return DEFECT_KINDS
    kinds = tuple(kind.lower() for kind in ([defects] if isinstance(defects, str) else defects))
    unknown = [kind for kind in kinds if kind not in DEFECT_KINDS]
    if unknown or not kinds:
        problem = f"Unknown kind of defect '{unknown[0]}'" if unknown else "defects is empty"
        msg = f"{problem}: choose from {', '.join(DEFECT_KINDS)}, or leave defects out for all."
        raise ConfigurationError(msg)
    return kinds
