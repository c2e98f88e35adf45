"""Procedural textures with defects as an anomalib data set: no download, nothing to label, exact masks."""

import logging
from pathlib import Path

from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.image.mvtecad import make_mvtec_ad_dataset
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_mixedteacher.data._checks import CheckedItems, check_val_split
from anomalib_mixedteacher.data._generate import Recipe, cache_root, ensure_generated, square_side

logger = logging.getLogger(__name__)


class SyntheticTexturesDataset(CheckedItems):
    """One category of procedural textures, generated into a cache folder at first use.

    The same arguments give the same images; an image does not depend on how many are asked for.

    Args:
        root (Path | str | None): Cache folder. Defaults to ``None``: ``synthetic_textures`` in the folder named by the
            environment variable ``ANOMALIB_MIXEDTEACHER_CACHE``, or in ``anomalib_mixedteacher`` below
            ``XDG_CACHE_HOME`` or ``~/.cache``.
        category (str): Texture family: ``weave``, ``grain``, ``grid``, ``cells`` or ``speckle``.
        image_size (int): Side of the square images in pixels, at least 32.
        num_train (int): Good training images, at least 1.
        num_test_good (int): Good test images, at least 1.
        num_defects_per_kind (int): Test images of each of the six kinds of defect, at least 1.
        seed (int): Seed of the product's appearance and of the images, 0 or more.
        augmentations (Transform | None): Augmentations of images and masks.
        split (str | Split | None): ``train``, ``test``, or None for both.

    Raises:
        ConfigurationError: If the category is unknown or a number is out of range.
        DataError: If the cache folder cannot be used.

    Example:
        >>> from anomalib_mixedteacher.data import SyntheticTexturesDataset
        >>> dataset = SyntheticTexturesDataset(category="weave", image_size=64, num_train=4, split="train")
        >>> dataset[0].image.shape
        torch.Size([3, 64, 64])
    """

    def __init__(
        self,
        root: Path | str | None = None,
        category: str = "weave",
        image_size: int = 256,
        num_train: int = 64,
        num_test_good: int = 24,
        num_defects_per_kind: int = 6,
        seed: int = 0,
        augmentations: Transform | None = None,
        split: str | Split | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        recipe = Recipe(category, image_size, num_train, num_test_good, num_defects_per_kind, seed)
        self.root_category = ensure_generated(cache_root(root), recipe)
        self.category = category
        self.split = split
        self.samples = make_mvtec_ad_dataset(self.root_category, split=split, extensions=(".png",))


class SyntheticTextures(AnomalibDataModule):
    """Datamodule of procedural textures: works offline, and its masks are exact.

    Defects are ``scratch``, ``stain``, ``hole``, ``missing_thread``, ``misaligned_patch`` and ``contrast_blob``; the
    kind of an image is in the column ``label`` of the test samples.

    Args:
        root (Path | str | None): Cache folder. Defaults to ``None``: ``synthetic_textures`` in the folder named by the
            environment variable ``ANOMALIB_MIXEDTEACHER_CACHE``, or in ``anomalib_mixedteacher`` below
            ``XDG_CACHE_HOME`` or ``~/.cache``.
        category (str): Texture family: ``weave``, ``grain``, ``grid``, ``cells`` or ``speckle``.
            Defaults to ``"weave"``.
        image_size (int | tuple[int, int]): Side of the square images in pixels, at least 32. Defaults to ``256``.
        num_train (int): Good training images, at least 1. Defaults to ``64``.
        num_test_good (int): Good test images, at least 1. Defaults to ``24``.
        num_defects_per_kind (int): Test images of each of the six kinds of defect, at least 1. Defaults to ``6``.
        seed (int): Seed of the product's appearance, of the images and of the validation split, 0 or more.
            Defaults to ``0``.
        train_batch_size (int): Training batch size. Defaults to ``8``.
        eval_batch_size (int): Validation and test batch size. Defaults to ``8``.
        num_workers (int): Worker processes per data loader. Defaults to ``0``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where no specific ones are given. Defaults to ``None``.
        test_split_mode (TestSplitMode | str): How the test set is made. Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio (float): Share of training images tested if there are no good test images; never needed here.
            Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): How the validation set is made. Defaults to ``ValSplitMode.FROM_TEST``:
            validation images are not tested.
        val_split_ratio (float): Share of the test (or training) images that validate. Defaults to ``0.5``.

    Raises:
        ConfigurationError: If the category is unknown, or an argument is out of range.
        DataError: If the cache folder cannot be used (raised when the data are prepared).

    Example:
        >>> from anomalib_mixedteacher.data import SyntheticTextures
        >>> datamodule = SyntheticTextures(category="grid", image_size=64, num_train=8)
        >>> datamodule.prepare_data()
        >>> datamodule.setup()
        >>> next(iter(datamodule.train_dataloader())).image.shape
        torch.Size([8, 3, 64, 64])
    """

    def __init__(
        self,
        root: Path | str | None = None,
        category: str = "weave",
        image_size: int | tuple[int, int] = 256,
        num_train: int = 64,
        num_test_good: int = 24,
        num_defects_per_kind: int = 6,
        seed: int = 0,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TEST,
        val_split_ratio: float = 0.5,
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
        check_val_split(self)
        self.recipe = Recipe(category, square_side(image_size), num_train, num_test_good, num_defects_per_kind, seed)
        self.root = cache_root(root)
        self.category = category

    def prepare_data(self) -> None:
        """Generate the images if the cache does not hold them.

        Raises:
            DataError: If the cache folder cannot be written, or has lost files.
        """
        folder = ensure_generated(self.root, self.recipe)
        logger.info("Procedural textures are in %s", folder)

    def _setup(self, _stage: str | None = None) -> None:
        """Set up the training and the test images."""
        self.train_data = self._dataset(Split.TRAIN)
        self.test_data = self._dataset(Split.TEST)

    def _dataset(self, split: Split) -> SyntheticTexturesDataset:
        """Make the data set of one split."""
        recipe = self.recipe
        return SyntheticTexturesDataset(
            root=self.root,
            category=recipe.category,
            image_size=recipe.image_size,
            num_train=recipe.num_train,
            num_test_good=recipe.num_test_good,
            num_defects_per_kind=recipe.num_defects_per_kind,
            seed=recipe.seed,
            split=split,
        )
