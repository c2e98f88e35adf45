"""Post-processors: thresholds against brute force, region scores, normalisation, buffers; nothing of training."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from scipy import ndimage

from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError
from anomalib_mixedteacher.export.openvino import thresholds_of
from anomalib_mixedteacher.post_processing import (
    F1PostProcessor,
    NormalCalibratedPostProcessor,
)
from mixedteacher_edge import Thresholds
from mixedteacher_edge.thresholds import region_score

TRAINER = SimpleNamespace(sanity_checking=False, global_step=1)


def validated(processor, scores, labels):
    """Let a post-processor see a validation set whose maps are as the scores, all over."""
    scores = torch.tensor(scores)
    batch = ImageBatch(
        image=torch.zeros(len(scores), 3, 8, 8),
        pred_score=scores,
        anomaly_map=scores[:, None, None].expand(-1, 8, 8).clone(),
        gt_label=torch.tensor(labels),
        gt_mask=torch.tensor(labels)[:, None, None].expand(-1, 8, 8).clone(),
    )
    processor.on_validation_batch_end(TRAINER, None, batch)
    processor.on_validation_epoch_end(TRAINER, None)
    return processor


def f1(scores, labels, threshold):
    alarms = np.asarray(scores, np.float32) >= np.float32(threshold)
    return 2 * (alarms & labels).sum() / (alarms.sum() + np.sum(labels))


class TestF1:
    def test_the_middle_between_good_and_defective(self):
        processor = validated(F1PostProcessor(), [0.3, 1.4, 0.9, 12.0, 10.0, 11.0], [0, 0, 0, 1, 1, 1])
        assert processor.image_threshold == processor.pixel_threshold == pytest.approx(5.7)

    def test_a_score_at_the_threshold_is_a_defect(self):
        processor = validated(F1PostProcessor(), [1.0, 3.0], [0, 1])
        scores = torch.tensor([1.0, 1.9, 2.0, 3.0])
        result = processor(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None]))
        assert result.pred_label.tolist() == result.pred_mask.flatten().tolist() == [False, False, True, True]

    @pytest.mark.parametrize("seed", range(8))
    def test_no_threshold_has_a_better_f1(self, seed):
        rng = np.random.default_rng(seed)
        labels = np.arange(40) % 3 == 0
        scores = np.round(rng.normal(1.0 * labels, 0.7), seed % 3 + 1)  # rounded: ties of good and defective ones
        found = validated(F1PostProcessor(), scores.astype(np.float32), labels.astype(int)).image_threshold.item()
        best = max(f1(scores, labels, threshold) for threshold in np.append(scores, 9))
        assert f1(scores, labels, found) == pytest.approx(best)
        neighbours = scores.astype(np.float32)
        lower, upper = neighbours[neighbours < found].max(), neighbours[neighbours >= found].min()
        assert found == pytest.approx((lower + upper) / 2, abs=1e-6)

    def test_neighbours_in_float32(self):
        low = np.float32(0.7)
        high = np.nextafter(low, np.float32(1))
        processor = validated(F1PostProcessor(), [low, high], [0, 1])
        assert processor.image_threshold.item() == high

    def test_ranks_outside_of_the_validation_sets_range_stay(self):
        processor = validated(F1PostProcessor(), [1.0, 3.0], [0, 1])
        scores = torch.linspace(-20, 60, 81)
        result = processor(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None]))
        for values in (result.pred_score, result.anomaly_map.flatten()):
            assert (values.diff() > 0).all()
            assert ((values > 0) & (values < 1)).all()
        near = processor(InferenceBatch(pred_score=torch.tensor([2.001]), anomaly_map=torch.zeros(1, 8, 8))).pred_score
        assert near.item() == pytest.approx(0.5 + 0.001 / (3 - 1), abs=1e-5)  # anomalib's scale

    @pytest.mark.parametrize("sensitivity", [0.2, 0.5, 0.65])
    def test_a_sensitivity_is_the_raw_threshold_of_the_export(self, sensitivity):
        processor = validated(F1PostProcessor(image_sensitivity=sensitivity), [1.0, 3.0], [0, 1])
        raw = thresholds_of(processor).image
        scores = torch.tensor([raw - 1e-3, raw + 1e-3])
        result = processor(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None]))
        assert result.pred_label.tolist() == [False, True]

    def test_without_defects_no_good_image_is_one(self):
        processor = validated(F1PostProcessor(), [0.3, 0.9], [0, 0])
        assert processor.image_threshold.item() == np.nextafter(np.float32(0.9), np.float32(1))


def calibrated(scores, maps=None, paths=None, **arguments):
    processor = NormalCalibratedPostProcessor(**arguments)
    processor.gather(torch.as_tensor(scores), maps, paths)
    processor.calibrate()
    return processor


def above(score):
    return np.nextafter(np.float32(score), np.float32(np.inf))


def largest_region(mask):
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return max((int((labels == index).sum()) for index in range(1, count + 1)), default=0)


@pytest.mark.parametrize("area", [1, 4, 30])
def test_region_score_is_the_highest_level_with_a_region_of_the_area(area):
    rng = np.random.default_rng(area)
    maps = np.stack([ndimage.gaussian_filter(rng.normal(size=(24, 24)), 1.5) for _ in range(6)]).astype(np.float32)
    for single in maps:
        found = region_score(single, area)
        assert largest_region(single >= found) >= area
        assert largest_region(single > found) < area
    with pytest.raises(ConfigurationError, match="min_area is 577 pixels of the anomaly map, which has 24 x 24"):
        region_score(maps[0], 577)


def test_thresholds_are_the_conformal_ones():
    maps = torch.arange(1.0, 20.0)[:, None, None].expand(19, 8, 8)
    processor = calibrated(torch.arange(1.0, 20.0).flip(0), maps, alarm_rate=0.1)
    scores = tuple(float(score) for score in range(1, 20))
    assert processor.thresholds == Thresholds(above(18), above(18), 0.1, 16, scores, scores)


def test_normalisation_is_monotone_and_a_half_at_the_threshold():
    processor = calibrated(torch.arange(1.0, 20.0), alarm_rate=0.1)
    scores = torch.tensor([-5.0, 0.0, 10.0, 18.0, above(18), 19.0, 1e3, 1e6])
    result = processor(InferenceBatch(pred_score=scores, anomaly_map=scores.reshape(1, 2, 4)))
    normalized = result.pred_score
    assert (normalized[1:] > normalized[:-1]).all()
    assert normalized[4] == 0.5
    assert normalized[2] == pytest.approx(0.25, abs=1e-6)  # the median
    assert ((normalized >= 0) & (normalized <= 1)).all()
    expected = [False] * 4 + [True] * 4
    assert result.pred_label.tolist() == expected
    assert result.pred_mask.flatten().tolist() == expected  # the pixel threshold follows the image's


def test_constant_scores():
    processor = calibrated(torch.full((30,), 0.7))
    result = processor(InferenceBatch(pred_score=torch.tensor([0.6, 0.7, 0.8]), anomaly_map=torch.zeros(3, 2, 2)))
    assert result.pred_label.tolist() == [False, False, True]
    assert result.pred_score[1] == pytest.approx(0.5, abs=1e-6)


def test_too_few_images_give_the_smallest_reachable_budget_and_say_so(caplog):
    with caplog.at_level(logging.WARNING):
        processor = calibrated([1.0, 3.0, 2.0], alarm_rate=0.05)
    assert processor.image_threshold.item() == above(3)
    assert "3 good images are too few for an alarm rate of 0.05" in caplog.text
    assert "good for 0.25." in caplog.text


def test_calibrating_again_starts_afresh():
    processor = NormalCalibratedPostProcessor(alarm_rate=0.3)
    processor.gather(torch.tensor([1.0, float("nan")]), paths=["a", "b"])
    with pytest.raises(CalibrationError, match="1 of 2 calibration scores are not finite"):
        processor.calibrate()
    with torch.inference_mode():
        processor.gather(torch.tensor([1.0, 2.0, 3.0]), paths=["c", "d", "e"])
        processor.calibrate()
    assert processor.image_scores.mul_(1).tolist() == [1, 2, 3]  # can be written to after inference mode


def test_an_image_counts_once():
    """Several processes pad their shares of a data set with images that others have."""
    processor = calibrated(torch.tensor([1.0, 2.0, 1.0]), paths=["a", "b", "a"], alarm_rate=0.4)
    assert processor.image_scores.tolist() == [1, 2]


def test_only_good_images_count_and_defects_among_them_are_named(caplog):
    scores = np.random.default_rng(0).normal(1.0, 0.1, size=40).astype(np.float32)
    scores[11] = 4.0
    processor = NormalCalibratedPostProcessor()
    batch = ImageBatch(
        image=torch.zeros(40, 3, 8, 8),
        pred_score=torch.from_numpy(scores),
        gt_label=torch.arange(40) % 4 == 0,
        image_path=[f"{index}.png" for index in range(40)],
    )
    with caplog.at_level(logging.WARNING):
        processor.on_validation_batch_end(TRAINER, None, batch)
        processor.on_validation_epoch_end(TRAINER, None)
    assert processor.image_scores.tolist() == sorted(scores[np.arange(40) % 4 != 0].tolist())
    assert "11.png scores far above the other good images: look whether it has a defect" in caplog.text
    assert caplog.text.count("scores far above") == 1


def test_state_with_any_number_of_scores_is_restored():
    processor = calibrated(torch.arange(1.0, 31.0), torch.rand(30, 8, 8), alarm_rate=0.1)
    other = NormalCalibratedPostProcessor()
    other.load_state_dict(copy.deepcopy(processor.state_dict()))
    other.load_checkpoint_config(processor.checkpoint_config())
    assert other.thresholds == processor.thresholds
    scores = torch.tensor([0.0, 15.0, 29.5, 99.0])
    results = [p(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None])) for p in (processor, other)]
    assert torch.equal(results[0].pred_score, results[1].pred_score)
    assert torch.equal(results[0].anomaly_map, results[1].anomaly_map)
    with pytest.raises(CalibrationError, match="was not calibrated on good images: run 'mixedteacher calibrate'"):
        NormalCalibratedPostProcessor().load_state_dict(F1PostProcessor().state_dict())


def test_p_values_and_labels_agree():
    processor = calibrated(torch.rand(99), alarm_rate=0.05)
    raw = torch.cat([torch.rand(200) * 1.2, processor.image_scores])
    result = processor(InferenceBatch(pred_score=raw, anomaly_map=None))
    p_values = [processor.thresholds.p_value(score) for score in result.pred_score.tolist()]
    assert result.pred_label.tolist() == [p_value <= 0.05 + 1e-12 for p_value in p_values]
    assert NormalCalibratedPostProcessor().thresholds is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alarm_rate": 0}, CalibrationError, "An alarm rate of 0 makes no sense"),
        ({"min_area": 0}, ConfigurationError, "min_area must be 1 pixel or more, not 0"),
        ({"image_sensitivity": 0.7}, ConfigurationError, "off the budget: set alarm_rate instead"),
        ({"pixel_sensitivity": 0.2}, ConfigurationError, "off the budget: set alarm_rate instead"),
        ({"enable_normalization": False}, ConfigurationError, "off the budget: set alarm_rate instead"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        NormalCalibratedPostProcessor(**arguments)
