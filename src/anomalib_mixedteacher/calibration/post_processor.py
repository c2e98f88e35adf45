"""anomalib post-processor that sets its thresholds from good images alone."""

import logging
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, Batch
from anomalib.data.datasets import AnomalibDataset
from anomalib.data.utils import ValSplitMode
from anomalib.post_processing import PostProcessor
from lightning import LightningModule, Trainer
from torchmetrics import CatMetric

from anomalib_mixedteacher.calibration.conformal import check_alarm_rate, p_value, suspects
from anomalib_mixedteacher.calibration.thresholds import (
    SMALLEST_UNIT,
    Threshold,
    check_min_area,
    find_threshold,
    region_score,
    rescale,
)
from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError, DataError

logger = logging.getLogger(__name__)

SCORES = ("image_scores", "pixel_scores")
SETTINGS = ("alarm_rate", "min_area", "tail_fit", "held_out", "seed")


class NormalCalibratedPostProcessor(PostProcessor):
    """Thresholds that honour a budget for false alarms, from held-out good images; no defect is needed.

    During training the good images of the validation set are scored, or, where there are none, a share of the training
    images that is set aside before training starts. Labelled defects in the validation set are not looked at.

    - The image threshold is the split-conformal one: see
      :func:`~anomalib_mixedteacher.calibration.conformal.conformal_threshold`.
    - The pixel threshold is the same for regions: a share of at most ``alarm_rate`` of good images has any region of
      ``min_area`` pixels or more above it.
    - Scores and maps are rescaled to 0.5 at their threshold and towards 0 and 1 on either side, monotone and without
      clamping, so that ranks, and with them AUROC and p-values, stay as they are (up to rounding).

    Where there are too few calibration images for the budget, the smallest reachable one is used, and a warning says
    so; ``tail_fit`` estimates a threshold instead. Train on one device: several would count padded images twice.

    Args:
        alarm_rate: Share of good images that may raise an alarm, above 0 and below 1.
        min_area: Pixels of the anomaly map (at the model's input size) from which a region counts, 1 or more.
        tail_fit: Fit the scores' tail where the images are too few for the budget: an estimate, not a promise.
        held_out: Share of the training images to set aside where there are no good validation images.
        seed: Seed of the choice of these images.
        kwargs: Passed to anomalib's ``PostProcessor``.

    Raises:
        CalibrationError: If the budget is no share.
        ConfigurationError: If another argument is out of range.
    """

    image_scores: torch.Tensor
    pixel_scores: torch.Tensor

    def __init__(
        self,
        alarm_rate: float = 0.05,
        min_area: int = 16,
        tail_fit: bool = False,
        held_out: float = 0.2,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (
            not self.enable_normalization
            or float(self.image_sensitivity) != 0.5
            or float(self.pixel_sensitivity) != 0.5
        ):
            msg = (
                "A sensitivity, or no normalisation, would move the thresholds off the budget: set alarm_rate instead."
            )
            raise ConfigurationError(msg)
        if not 0 < held_out < 1:
            msg = f"held_out must be a share above 0 and below 1, not {held_out}."
            raise ConfigurationError(msg)
        self.alarm_rate = check_alarm_rate(alarm_rate)
        self.min_area = check_min_area(min_area)
        self.tail_fit = tail_fit
        self.held_out = held_out
        self.seed = seed
        for name in SCORES:
            self.register_buffer(name, torch.empty(0))
        self._gathered = {name: CatMetric(nan_strategy="disable") for name in SCORES}
        for name, metric in self._gathered.items():
            self.add_module(f"_gathered_{name}", metric)  # moved between devices with the rest
        self._paths: list[str] = []
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
        """Set training images aside where the validation set has no good ones.

        Raises:
            DataError: If the training set is too small to be parted.
        """
        super().setup(trainer, pl_module, stage)
        datamodule = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(datamodule, AnomalibDataModule) and not has_good(datamodule):
            hold_out(datamodule, self.held_out, self.seed)
            logger.info("No good validation images: %d training images set aside.", len(datamodule.val_data))

    def on_validation_batch_end(  # type: ignore[override]  # anomalib's signature
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Gather the scores of good images."""
        del pl_module, args, kwargs
        if trainer.sanity_checking:
            return
        good = torch.eq(torch.as_tensor(outputs.gt_label), 0).flatten()
        self.gather(
            torch.as_tensor(outputs.pred_score).flatten()[good],
            None if outputs.anomaly_map is None else torch.as_tensor(outputs.anomaly_map)[good],
            [
                path
                for path, is_good in zip(getattr(outputs, "image_path", None) or [], good.tolist(), strict=False)
                if is_good
            ],
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
        if self.image_scores.numel() and self._calibrated_step != trainer.global_step:
            logger.warning(
                "The last validation was before the training's last step, and the thresholds are of that time: test "
                "and export the checkpoint, not this model, or train a multiple of check_val_every_n_epoch."
            )
        if not self.image_scores.numel():
            logger.warning(
                "No good image was scored during training, so there is no threshold: give the trainer validation data "
                "and a check_val_every_n_epoch that it reaches, or run 'mixedteacher calibrate'."
            )

    def gather(self, scores: torch.Tensor, maps: torch.Tensor | None = None, paths: list[str] | None = None) -> None:
        """Take the raw scores of a batch of good images.

        Args:
            scores: Image scores ``(B,)``.
            maps: Anomaly maps ``(B, H, W)`` or ``(B, 1, H, W)``.
            paths: Paths of the images, for messages.
        """
        self._gathered["image_scores"].update(scores.detach().float())
        if maps is not None:
            self._gathered["pixel_scores"].update(region_scores(maps, self.min_area).to(scores.device))
        self._paths += [str(path) for path in paths or []]

    def calibrate(self, strict: bool = False) -> list[str]:
        """Set both thresholds from the gathered scores, and forget these.

        Args:
            strict: Refuse where there are too few scores for the budget, instead of warning.

        Returns:
            Paths of images among them that do not look good; see
            :func:`~anomalib_mixedteacher.calibration.conformal.suspects`.

        Raises:
            CalibrationError: If a score is not finite, or if they are too few and ``strict``.
        """
        named: list[str] = []
        gathered = {name: _scores(metric) for name, metric in self._gathered.items()}
        paths, self._paths = self._paths, []
        for name, prefix in zip(SCORES, ("image", "pixel"), strict=True):
            scores = gathered[name]
            if not scores.numel():
                continue
            found = find_threshold(scores.cpu(), self.alarm_rate, prefix, self.tail_fit, strict)
            with torch.inference_mode(False):  # a buffer made within could never be written to again
                setattr(self, name, scores.clone().to(self._image_threshold))
            getattr(self, f"_{prefix}_threshold").fill_(found.value)
            getattr(self, f"{prefix}_min").fill_(found.median)
            getattr(self, f"{prefix}_max").fill_(scores.max())
            if prefix == "image" and len(paths) == scores.numel():
                named = [paths[position] for position in suspects(scores.cpu())]
        for path in named:
            logger.warning("%s scores far above the other good images: look whether it has a defect.", path)
        return named

    def p_value(self, scores: torch.Tensor) -> torch.Tensor:
        """Give conformal p-values of raw image scores.

        Args:
            scores: Raw scores of any shape, as the model gives them before post-processing.

        Returns:
            The p-values, of the same shape; an alarm at a budget is a p-value at or below it.

        Raises:
            CalibrationError: If there was no calibration.
        """
        return torch.from_numpy(p_value(scores.detach().cpu(), self.image_scores.cpu())).to(scores.device)

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """The thresholds by ``image`` and ``pixel``: none before a calibration, no ``pixel`` without maps."""
        found = {}
        for name, prefix in zip(SCORES, ("image", "pixel"), strict=True):
            if (scores := getattr(self, name)).numel():
                value = getattr(self, f"_{prefix}_threshold").item()
                found[prefix] = Threshold(value, np.sort(scores.cpu().numpy()))
        return found

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,  # noqa: ARG004  # anomalib's signature
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        """Rescale to 0.5 at the threshold; ``norm_min`` holds the median of the good images' scores.

        The distance between median and threshold is the unit: the median becomes 0.25.
        """
        if preds is None:
            return None
        unit = torch.where(threshold > norm_min, threshold - norm_min, threshold.abs().clamp_min(SMALLEST_UNIT))
        return torch.where(torch.isnan(threshold), preds, rescale(preds, threshold, unit))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in SCORES:  # as many as there were calibration images
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=getattr(self, name).device))
            elif f"{prefix}_image_threshold" in state_dict:
                msg = (
                    "This checkpoint was not calibrated on good images: run 'mixedteacher calibrate' on it, or leave "
                    "the post-processor out."
                )
                raise CalibrationError(msg)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _scores(metric: CatMetric) -> torch.Tensor:
    """Take what a metric gathered, and empty it."""
    scores = torch.as_tensor(metric.compute()).flatten() if metric.update_called else torch.empty(0)
    metric.reset()
    return scores


def region_scores(maps: torch.Tensor, min_area: int) -> torch.Tensor:
    """Give each map's :func:`~anomalib_mixedteacher.calibration.thresholds.region_score`.

    Args:
        maps: Anomaly maps ``(B, H, W)`` or ``(B, 1, H, W)``.
        min_area: Area in pixels.

    Returns:
        Thresholds ``(B,)`` on the CPU.

    Raises:
        ConfigurationError: If a map is smaller than the area.
    """
    arrays = maps.detach().float().cpu().numpy()
    return torch.tensor([region_score(single.reshape(single.shape[-2:]), min_area) for single in arrays])


def hold_out(datamodule: AnomalibDataModule, share: float, seed: int) -> None:
    """Make a share of a datamodule's training images its validation set.

    Images of one group (column ``group`` of the samples, as of :class:`MagneticTile`) stay together.

    Args:
        datamodule: A datamodule that was set up.
        share: Share of the images.
        seed: Seed of the choice.

    Raises:
        DataError: If there are not at least two images or groups.
    """
    samples = datamodule.train_data.samples
    groups = samples["group"] if "group" in samples else samples.index.to_series()
    units = groups.unique()
    if len(units) < 2:
        msg = (
            f"{len(samples)} training images are too few to set some aside for the threshold: add good images, or a "
            "folder of good validation images."
        )
        raise DataError(msg)
    count = min(max(1, round(share * len(units))), len(units) - 1)
    chosen = set(np.random.default_rng(seed).permutation(units)[:count].tolist())
    held = groups.isin(chosen).to_numpy()
    whole: AnomalibDataset = datamodule.train_data
    datamodule.train_data = whole.subsample(np.flatnonzero(~held).tolist())
    datamodule.val_data = whole.subsample(np.flatnonzero(held).tolist())
    datamodule._update_augmentations()  # the user's, and the resize of the model's transform
    datamodule.val_split_mode = ValSplitMode.FROM_TRAIN


def has_good(datamodule: AnomalibDataModule) -> bool:
    """Tell whether the validation set of a datamodule that was set up has good images."""
    validation = getattr(datamodule, "val_data", None)
    return validation is not None and bool((validation.samples.label_index == 0).any())
