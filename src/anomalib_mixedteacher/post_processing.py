"""anomalib post-processors whose threshold is the first score that counts as a defect."""

import logging
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, Batch
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning import LightningModule, Trainer
from torch import distributed
from torchmetrics.utilities.data import dim_zero_cat

from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError
from mixedteacher_edge.conformal import check_alarm_rate, next_above, suspects
from mixedteacher_edge.thresholds import (
    NO_TILES,
    SMALLEST_UNIT,
    Arithmetic,
    Thresholds,
    Unit,
    check_min_area,
    check_per,
    part_scores,
    rescale,
)
from mixedteacher_edge.tiling import STRIDE

logger = logging.getLogger(__name__)

SETTINGS = ("alarm_rate", "min_area", "per")
_CALIBRATED = "post_processor.image_scores"
_CONFIG = "anomalib_post_processor_config"
_TENSORS = Arithmetic(torch.abs, torch.lt, torch.where, float)


class _F1MiddleThreshold(F1AdaptiveThreshold):
    """The middle of the interval of thresholds with the best F1, between the scores on either side of it."""

    def compute(self) -> torch.Tensor:  # type: ignore[override]  # as anomalib's own
        """Compute the threshold, from which on a score counts as a defect.

        The best F1 is reached from just above one score on, which is a good image's, up to the next, a defect's.
        """
        upper: torch.Tensor = super().compute()
        if not self._has_anomalous_samples():  # then it is the highest good score
            return torch.full_like(upper, next_above(upper.item()))
        scores = dim_zero_cat(self.preds)
        lower = scores[scores < upper]
        if not lower.numel():
            return upper
        middle = lower.max() + (upper - lower.max()) / 2
        return torch.where(middle > lower.max(), middle, upper)


class F1PostProcessor(PostProcessor):
    """anomalib's post-processor with three differences, in threshold, label and scale.

    Thresholds are those of the best F1 on the labelled validation images. Where an interval of thresholds has it, as
    always where defects are told from good images without a mistake, it is the middle between the highest good and the
    lowest defective score of that interval, for images and for pixels. anomalib takes the lowest defective score, and
    calls it good.

    Scores and maps are rescaled to 0.5 at the threshold by :func:`~mixedteacher_edge.thresholds.rescale`, there as
    steeply as by anomalib. anomalib cuts them off at the range of the validation set, so that all beyond tie.

    Args:
        kwargs: Passed to anomalib's ``PostProcessor``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._image_threshold_metric = _F1MiddleThreshold(fields=["pred_score", "gt_label"], strict=False)
        self._pixel_threshold_metric = _F1MiddleThreshold(fields=["anomaly_map", "gt_mask"], strict=False)

    @staticmethod
    def _apply_threshold(preds: torch.Tensor | None, threshold: torch.Tensor) -> torch.Tensor | None:
        """Tell what is at a threshold or above."""
        return None if preds is None else preds >= threshold

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None, norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor
    ) -> torch.Tensor | None:
        """Rescale to 0.5 at the threshold, if there is one."""
        if preds is None:
            return None
        unit = ((norm_max - norm_min) / 2).clamp(min=SMALLEST_UNIT)
        return torch.where(torch.isnan(threshold + unit), preds, rescale(preds, threshold, unit, _TENSORS))


class NormalCalibratedPostProcessor(F1PostProcessor):
    """Thresholds that honour a budget for false alarms, from good validation images alone; no defect is needed.

    - The image threshold is the split-conformal one: see :func:`~mixedteacher_edge.conformal.conformal_threshold`.
    - The pixel threshold is the same for regions: a share of at most ``alarm_rate`` of good images has any region of
      ``min_area`` pixels or more at or above it.
    - Scores and maps are rescaled to 0.5 at their threshold and towards 0 and 1 on either side, monotone and without
      clamping, so that ranks, and with them AUROC and p-values, stay as they are (up to rounding).

    Where there are too few images for the budget, the smallest reachable one is used, and a warning says so. Labelled
    defects in the validation set are not looked at.

    Args:
        alarm_rate: Share of good images that may raise an alarm, above 0 and below 1.
        min_area: Pixels of the anomaly map (at the model's input size) from which a region counts, 1 or more.
        per: What the budget counts: ``"image"``, or of a model that works in tiles ``"tile"`` or a number of lines, a
            multiple of 4. An image's own chance of an alarm grows with its parts.
        kwargs: Passed to anomalib's ``PostProcessor``.

    Raises:
        CalibrationError: If the budget is no share.
        ConfigurationError: If another argument is out of range.
    """

    image_scores: torch.Tensor
    pixel_scores: torch.Tensor

    def __init__(self, alarm_rate: float = 0.05, min_area: int = 16, per: Unit = "image", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        sensitivities = {float(self.image_sensitivity), float(self.pixel_sensitivity)}
        if not self.enable_normalization or sensitivities != {0.5}:
            msg = (
                "A sensitivity, or no normalisation, would move the thresholds off the budget: set alarm_rate instead."
            )
            raise ConfigurationError(msg)
        self.alarm_rate = check_alarm_rate(alarm_rate)
        self.min_area = check_min_area(min_area)
        self.per = check_per(per)
        self.register_buffer("image_scores", torch.empty(0))
        self.register_buffer("pixel_scores", torch.empty(0))
        self._gathered: list[tuple[str, float, float | None]] = []
        self._calibrated_step: int | None = None

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        """Attributes that a checkpoint keeps."""
        return (*super()._checkpoint_config_keys, *SETTINGS)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the settings from a checkpoint, and say so where this run asked for others."""
        before = {key: getattr(self, key) for key in SETTINGS}
        super().load_checkpoint_config(config)
        if differing := [f"{key}={getattr(self, key)}" for key, value in before.items() if getattr(self, key) != value]:
            logger.warning(
                "Using the checkpoint's %s; 'mixedteacher calibrate' sets thresholds for another budget.",
                ", ".join(differing),
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to train on a datamodule without good validation images, with a CalibrationError."""
        super().setup(trainer, pl_module, stage)
        datamodule = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(datamodule, AnomalibDataModule):
            validation = getattr(datamodule, "val_data", None)
            if validation is None or not (validation.samples.label_index == 0).any():
                msg = (
                    "There are no good validation images to find the thresholds on: set some of the training images "
                    "aside (--data.val_split_mode from_train --data.val_split_ratio 0.2)."
                )
                raise CalibrationError(msg)
        if self.per != "image" and getattr(getattr(pl_module, "model", None), "tile_size", None) is None:
            raise ConfigurationError(NO_TILES.format(self.per))

    def on_validation_batch_end(  # type: ignore[override]  # anomalib's signature
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Gather the scores of good images."""
        del args, kwargs
        if trainer.sanity_checking:
            return
        good = torch.eq(torch.as_tensor(outputs.gt_label), 0).flatten()
        paths = getattr(outputs, "image_path", None) or [""] * len(good)
        self.gather(
            torch.as_tensor(outputs.pred_score).flatten()[good],
            None if outputs.anomaly_map is None else torch.as_tensor(outputs.anomaly_map)[good],
            [path for path, is_good in zip(paths, good.tolist(), strict=True) if is_good],
            getattr(getattr(pl_module, "model", None), "tile_size", None),
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds from what was gathered."""
        del pl_module
        if not trainer.sanity_checking:
            self.calibrate()
            self._calibrated_step = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if no validation run has come by, or none at the end."""
        del pl_module
        if not self.image_scores.numel():
            logger.warning(
                "No good image was scored during training, so there is no threshold: give the trainer validation data "
                "and a check_val_every_n_epoch that it reaches, or run 'mixedteacher calibrate'."
            )
        elif self._calibrated_step != trainer.global_step:
            logger.warning(
                "The last validation was before the training's last step, and the thresholds are of that time: test "
                "and export the checkpoint, not this model, or train a multiple of check_val_every_n_epoch."
            )

    def gather(
        self,
        scores: torch.Tensor,
        maps: torch.Tensor | None = None,
        paths: list[str] | None = None,
        tile_size: int | None = None,
    ) -> None:
        """Take the raw scores of a batch of good images.

        Args:
            scores: Image scores ``(B,)``.
            maps: Anomaly maps ``(B, H, W)`` or ``(B, 1, H, W)``.
            paths: Paths of the images; one that was gathered already counts once.
            tile_size: Side of the model's tiles.

        Raises:
            ConfigurationError: If the budget counts parts of images, and the model does not work in tiles.
        """
        values = scores.detach().float().tolist()
        names = [""] * len(values) if paths is None else [str(path) for path in paths]
        if maps is None:
            self._gathered += [(name, value, None) for name, value in zip(names, values, strict=True)]
            return
        arrays = maps.detach().float().cpu().numpy()
        for name, value, single in zip(names, values, arrays, strict=True):
            scale = STRIDE if tile_size else 1  # of tiles each value is repeated
            coarse = single.reshape(single.shape[-2:])[::scale, ::scale]
            parts = part_scores(value, coarse, self.min_area, self.per, tile_size, scale)
            for number, (score, region) in enumerate(parts):
                self._gathered.append((f"{name}#{number}" if name and len(parts) > 1 else name, score, region))

    def calibrate(self, strict: bool = False) -> list[str]:
        """Set both thresholds from the gathered scores of all processes, and forget these.

        Args:
            strict: Refuse where there are too few scores for the budget, instead of warning.

        Returns:
            Paths of images that do not look good; see :func:`~mixedteacher_edge.conformal.suspects`.

        Raises:
            CalibrationError: If a score is not finite, or if they are too few and ``strict``.
        """
        rows, self._gathered = _of_all_processes(self._gathered), []
        if not rows:
            return []
        named = {path or f"({number})": row for number, (path, *row) in enumerate(rows)}  # padded images come twice
        scores, regions = zip(*named.values(), strict=True)
        found = Thresholds.from_good(
            scores, None if None in regions else regions, self.alarm_rate, self.min_area, strict, self.per
        )
        with torch.inference_mode(False):  # a buffer made within could never be written to again
            self.image_scores, self.pixel_scores = (
                torch.tensor(values, dtype=torch.float32, device=self.image_scores.device)
                for values in (found.image_scores, found.pixel_scores)
            )
        self._image_threshold.fill_(found.image)
        self._pixel_threshold.fill_(torch.nan if found.pixel is None else found.pixel)
        self.image_min.fill_(found.unit("image"))  # what _normalize needs beside the threshold
        self.pixel_min.fill_(found.unit("pixel"))
        paths = list(named)
        far = [path for path in (paths[position] for position in suspects(scores)) if not path.startswith("(")]
        for path in far:
            logger.warning("%s scores far above the other good images: look whether it has a defect.", path)
        return far

    @property
    def thresholds(self) -> Thresholds | None:
        """The thresholds; ``None`` before a calibration."""
        if not self.image_scores.numel():
            return None
        image, pixel = (tuple(scores.tolist()) for scores in (self.image_scores, self.pixel_scores))
        value = self._pixel_threshold.item() if pixel else None
        return Thresholds(self._image_threshold.item(), value, self.alarm_rate, self.min_area, image, pixel, self.per)

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,  # noqa: ARG004  # anomalib's signature
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        """Rescale to 0.5 at the threshold; ``norm_min`` holds the unit."""
        if preds is None:
            return None
        scaled = rescale(preds, threshold, norm_min, _TENSORS)
        return torch.where(torch.isnan(threshold), preds, scaled)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("image_scores", "pixel_scores"):  # as many as there were calibration images
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=getattr(self, name).device))
            elif f"{prefix}_image_threshold" in state_dict:
                msg = (
                    "This checkpoint was not calibrated on good images: run 'mixedteacher calibrate' on it, or leave "
                    "the post-processor out."
                )
                raise CalibrationError(msg)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _of_all_processes(rows: list[Any]) -> list[Any]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def restore_post_processor(module: AnomalibModule, checkpoint: dict[str, Any]) -> None:
    """Give a model the calibrated post-processor where its checkpoint holds one's state, and keep given sensitivities.

    anomalib keeps no components among a checkpoint's hyper-parameters: ``load_from_checkpoint``, and with it its
    export, builds a model with default ones, which such a state does not fit. And it puts the checkpoint's
    sensitivities, 0.5 unless training was given others, in the place of those that a command was given.

    Raises:
        ConfigurationError: If sensitivities are given to a model that was calibrated for a budget.
    """
    before = module.post_processor
    given = given_sensitivities(before)
    config = checkpoint.get(_CONFIG) or {}
    if _CALIBRATED not in checkpoint["state_dict"]:
        checkpoint[_CONFIG] = config | given
        return
    if given:
        msg = "Sensitivities would move a calibrated model's thresholds off their budget: calibrate it for another one."
        raise ConfigurationError(msg)
    if isinstance(before, NormalCalibratedPostProcessor):
        return
    module.post_processor = NormalCalibratedPostProcessor(**{key: config[key] for key in SETTINGS if key in config})
    if module._trainer is not None:  # which took the callbacks before it restores the checkpoint
        callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
        # without the one of a model that this trainer had before
        others = [c for c in callbacks if not isinstance(c, NormalCalibratedPostProcessor)]
        callbacks[:] = [module.post_processor if callback is before else callback for callback in others]


def given_sensitivities(post_processor: Any) -> dict[str, float]:
    """Give the sensitivities of a post-processor that are not anomalib's default of 0.5, by their names."""
    values = {name: getattr(post_processor, name, 0.5) for name in ("image_sensitivity", "pixel_sensitivity")}
    return {name: float(value) for name, value in values.items() if value != 0.5}
