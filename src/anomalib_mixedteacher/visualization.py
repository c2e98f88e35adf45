"""Result pictures of the images as they were read, each under a path of its own."""

import copy
import os
from pathlib import Path
from typing import Any

from anomalib.data import ImageBatch
from anomalib.visualization import ImageVisualizer as AnomalibImageVisualizer

from anomalib_mixedteacher.decoding import read_image


class ImageVisualizer(AnomalibImageVisualizer):
    """anomalib's visualizer with two differences.

    It shows what :func:`~anomalib_mixedteacher.decoding.read_image` reads, where anomalib's opens files by itself and
    shows those of 16 bits white and photos lying; and it writes an image's picture under the image's path below what
    all images of the data set share, where anomalib's lets images of one name replace each other's.
    """

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures of a batch."""
        del pl_module, outputs, batch_idx
        loaders = trainer.predict_dataloaders if trainer.predicting else trainer.test_dataloaders
        dataset = (loaders[dataloader_idx] if isinstance(loaders, list) else loaders).dataset
        paths = dataset.samples.image_path if hasattr(dataset, "samples") else dataset.image_filenames
        shared = os.path.commonpath([Path(path).absolute().parent for path in paths])
        self.output_dir = Path(self.output_dir or Path(trainer.default_root_dir) / "images")
        item: Any
        for item in batch:
            shown = copy.copy(item)
            shown.image, shown.image_path = read_image(item.image_path, as_tensor=True), None
            picture: Any = self.visualize(shown)
            path = self.output_dir / Path(item.image_path).absolute().relative_to(shared)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
