"""What the Lightning modules with a standardised map share: statistics of good images, and work in tiles."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Resize

from anomalib_mixedteacher.components.distillation_mixin import STATISTICS_IMAGES, DistillationMixin
from anomalib_mixedteacher.components.pre_processing import IMAGE_SIZE
from anomalib_mixedteacher.components.standardized_map import StandardizedMapModel
from anomalib_mixedteacher.components.tiles import as_prediction, draw, stack_predictions, take
from anomalib_mixedteacher.components.training_data import check_equal_sizes
from anomalib_mixedteacher.errors import ConfigurationError
from mixedteacher_edge.tiling import Place, Tiling

STATISTICS_TILES = 256  # a position within a tile is compared with itself: what varies between tiles must be seen
PROFILE_IMAGES = 16  # each is predicted as a whole


class StandardizedMapMixin(DistillationMixin):
    """Recipe of a model whose ``anomaly_map_generator`` is a :class:`~.standardized_map.StandardizedMap`.

    With ``tile_size``, images are taken at their own size and cut into tiles: some of each image in a training step,
    all of them in a prediction.
    """

    model: StandardizedMapModel
    tiles_per_image: int
    _statistics_step = -1

    @property
    def _tiling(self) -> Tiling | None:
        return None if self.model.tiles is None else self.model.tiles.tiling

    def setup(self, stage: str) -> None:
        """Prepare as every model does, and refuse batches of images that anomalib would stretch to one size."""
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if self._tiling is not None:
            if self.tiles_per_image < 1:
                msg = f"tiles_per_image is {self.tiles_per_image}: give 1 or more."
                raise ConfigurationError(msg)
            if extract_transforms_by_type(getattr(self.pre_processor, "transform", None), Resize):
                msg = "tile_size takes images at their own size: give a pre-processor that does not resize."
                raise ConfigurationError(msg)
            for split, option in (("train", "train"), ("val", "eval"), ("test", "eval")):
                if getattr(datamodule, f"{option}_batch_size", 1) > 1:
                    check_equal_sizes(getattr(datamodule, f"{split}_data", None), f"{option}_batch_size")

    def on_train_start(self) -> None:
        """Prepare as every model does; the statistics of an earlier training do not count."""
        super().on_train_start()
        self._statistics_step = -1

    def on_train_epoch_end(self) -> None:
        """Gather statistics of good images where no validation has done so; those of tiles at the end only."""
        last = self.global_step == self.trainer.estimated_stepping_batches or self.trainer.should_stop
        if self._statistics_step != self.global_step and (last or self._tiling is None):
            self._update_good_statistics()

    def on_validation_start(self) -> None:
        """Gather statistics of good images first: the thresholds found in validation depend on them."""
        if self.trainer.state.fn == "fit":
            self._update_good_statistics()

    def training_images(self, batch: Any) -> tuple[torch.Tensor, Sequence[str] | None]:
        """Give the images, or tiles of each that are drawn anew in each epoch."""
        images, paths = super().training_images(batch)
        tiling = self._tiling
        if tiling is None:
            return images, paths
        drawn = [draw(images.shape[-2], images.shape[-1], self.tiles_per_image, tiling) for _ in images]
        tiles = torch.cat([take(image, some, tiling) for image, some in zip(images, drawn, strict=True)])
        if not paths:
            return tiles, None
        return tiles, [_name(path, place) for path, some in zip(paths, drawn, strict=True) for place in some]

    def predict_images(self, images: torch.Tensor, paths: Sequence[str] | None) -> tuple[InferenceBatch, torch.Tensor]:
        """Give predictions and losses of images, whole or tile by tile."""
        tiling = self._tiling
        if tiling is None:
            return super().predict_images(images, paths)
        predictions, losses = [], []
        for number, image in enumerate(images):
            of_tiles: list[torch.Tensor] = []
            predict = partial(self._tile_maps, paths[number] if paths else None, of_tiles)
            predictions.append(as_prediction(self.model.joined_map(image, predict), image))
            losses.append(torch.cat(of_tiles).mean())
        return stack_predictions(predictions), torch.stack(losses)

    def _tile_maps(
        self, path: str | None, losses: list[torch.Tensor], tiles: torch.Tensor, places: Sequence[Place]
    ) -> torch.Tensor:
        """Give the maps of tiles, and add their losses."""
        names = None if path is None else [_name(path, place) for place in places]
        prediction, loss = super().predict_images(tiles, names)
        losses.append(loss)
        return torch.as_tensor(prediction.anomaly_map)

    def _good_images(
        self, at_once: int = 16, count: int = STATISTICS_IMAGES
    ) -> Iterator[tuple[torch.Tensor, Sequence[str] | None]]:
        """Give a sample of the training images, or of their tiles."""
        tiling = self._tiling
        if tiling is None:
            yield from super()._good_images(at_once, count)
            return
        loader: Any = self.trainer.train_dataloader
        each = -(-STATISTICS_TILES // min(count, len(loader.dataset)))
        for number, (images, paths) in enumerate(super()._good_images(at_once=1, count=count)):
            chosen = tiling.sample(images.shape[-2], images.shape[-1], each, number)
            names = [_name(path, place) for path in paths for place in chosen] if paths else None
            yield take(images[0], chosen, tiling), names

    @torch.no_grad()
    def _update_good_statistics(self) -> None:
        generator: Any = self.model.anomaly_map_generator
        if not generator.needs_good_statistics:
            return
        modes = {module: module.training for module in self.model.students.modules()}
        self.model.students.eval()
        generator.set_good_statistics(self.good_features(), self.model.tile_size)
        if self.model.standardize == "position":
            good = super()._good_images(at_once=1, count=PROFILE_IMAGES)
            self.model.set_good_profile(images[0] for images, _ in good)
        for module, mode in modes.items():
            module.training = mode
        self._statistics_step = self.global_step

    @staticmethod
    def pre_processor_for(image_size: tuple[int, int] | None, tile_size: int | None) -> PreProcessor:
        """Make the default pre-processor: resize and ImageNet normalisation, without the resize for tiles.

        Raises:
            ConfigurationError: If both sizes are given.
        """
        if tile_size is not None and image_size is not None:
            msg = "tile_size takes images at their own size: leave image_size out."
            raise ConfigurationError(msg)
        return DistillationMixin.configure_pre_processor(None if tile_size else image_size or IMAGE_SIZE)


def _name(path: str, place: Place) -> str:
    return f"{path}#{place.top},{place.left}"
