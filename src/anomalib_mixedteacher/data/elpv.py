"""Solar cells under electroluminescence as an anomalib data set, out of the package ``elpv-dataset``.

Reference:
    Sergiu Deitsch et al.: Automatic classification of defective photovoltaic module cells in electroluminescence
    images. Solar Energy 185, 2019. The images are licensed CC BY-NC-SA 4.0.
"""

import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anomalib.data.utils import Split

from anomalib_mixedteacher.data.base import GOOD, CheckedDataModule, check_choice, check_ratio
from anomalib_mixedteacher.errors import DataError

DEFECTIVE = "defective"
"""Label of the cells with a defect."""


class Elpv(CheckedDataModule):
    """Datamodule of the solar cells of the package ``elpv-dataset``: 2,624 grey images of 300 x 300 pixels, no masks.

    A cell that the experts were sure of is good (probability of a defect 0; 1,508 cells) or defective (1; 715 cells);
    the others are left out. Half of the good cells train, the others are tested with all defective ones.

    Args:
        category (str): Type of the cells: ``mono`` (monocrystalline), ``poly`` (polycrystalline) or ``all``; both types
            are split as they are alone. Defaults to ``"all"``.
        test_split_ratio (float): Share of the good cells that is tested, above 0 and below 1. Defaults to ``0.5``.
        **kwargs: See :class:`~anomalib_mixedteacher.data.base.CheckedDataModule`.

    Raises:
        ConfigurationError: If an argument is unknown or out of range.
        DataError: If the package is not installed (raised when the data are prepared).

    Example:
        >>> from anomalib_mixedteacher.data import Elpv
        >>> datamodule = Elpv(category="mono")
        >>> datamodule.setup()  # doctest: +SKIP
    """

    def __init__(self, category: str = "all", test_split_ratio: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("category", category, ("all", "mono", "poly"))
        check_ratio("test_split_ratio", test_split_ratio)
        self.category = category
        self.test_split_ratio = test_split_ratio

    def make_samples(self) -> pd.DataFrame:
        """List the cells that the experts were sure of, and split the good ones of each type."""
        package = find_spec("elpv_dataset")
        if package is None or package.origin is None:
            msg = "Elpv needs the package elpv-dataset, which is not installed: pip install elpv-dataset (91 MB)."
            raise DataError(msg)
        folder = Path(package.origin).parent / "data"
        cells = pd.read_csv(folder / "labels.csv", sep=r"\s+", names=["image_path", "probability", "type"])
        cells = cells[cells.probability.isin([0, 1])].reset_index(drop=True)
        defective = cells.probability == 1
        samples = pd.DataFrame(
            {
                "image_path": [str(folder / path) for path in cells.image_path],
                "label": np.where(defective, DEFECTIVE, GOOD),
                "mask_path": "",
                "type": cells.type,
                "split": Split.TEST.value,
            }
        )
        for kind in ("mono", "poly"):
            good = np.flatnonzero((samples.type == kind) & ~defective)
            order = np.random.default_rng([self.seed or 0, zlib.crc32(kind.encode())]).permutation(good)
            samples.loc[order[round(self.test_split_ratio * len(good)) :], "split"] = Split.TRAIN.value
        return samples if self.category == "all" else samples[samples.type == self.category]
