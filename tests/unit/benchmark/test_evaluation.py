"""Figures of a benchmark's cell against plain loops, and the sentence for each that cannot be had."""

import numpy as np
import pytest
import torch

from anomalib_mixedteacher.benchmark.evaluation import (
    IMAGE_METRICS,
    METRICS,
    PIXEL_METRICS,
    compute_metrics,
    count_alarms,
    keep,
    notes,
)
from anomalib_mixedteacher.benchmark.result import Calibration
from anomalib_mixedteacher.benchmark.run_folder import KeptPredictions
from anomalib_mixedteacher.benchmark.scores import Predictions

CALIBRATION = Calibration(image=0.5, pixel=0.6, images=40, alarm_rate=0.05)


def predictions(kinds, masks=True, side=8):
    """Random scores and maps; a defect is a square of the mask, with maps somewhat higher on it."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([int(kind != "good") for kind in kinds])
    truth = torch.zeros(len(kinds), side, side, dtype=torch.int32)
    if masks:
        truth[labels == 1, 2:5, 3:6] = 1
    maps = torch.rand(len(kinds), side, side, generator=generator) + 0.4 * truth
    scores = torch.rand(len(kinds), generator=generator) + 0.3 * labels
    return Predictions(scores, maps, labels, truth, list(kinds))


KINDS = ["good"] * 9 + ["hole"] * 4 + ["crack"] * 3


def loop_auroc(scores, labels):
    good, bad = scores[labels == 0], scores[labels == 1]
    return np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])


def loop_counts(scores, labels):
    """Precision and recall at each score taken as threshold, the highest first."""
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        hits = (chosen & (labels == 1)).sum()
        yield hits / chosen.sum(), hits / (labels == 1).sum()


def loop_f1(scores, labels):
    return max(2 * p * r / (p + r) for p, r in loop_counts(scores, labels) if p + r > 0)


def loop_average_precision(scores, labels):
    total, before = 0.0, 0.0
    for precision, recall in loop_counts(scores, labels):
        total += precision * (recall - before)
        before = recall
    return total


def test_figures_are_those_of_plain_loops():
    p = predictions(KINDS)
    metrics, missing, curves = compute_metrics(p, CALIBRATION)
    assert missing == {}
    assert set(metrics) == set(METRICS)
    scores, labels = p.scores.numpy(), p.labels.numpy()
    assert metrics["image_AUROC"] == pytest.approx(loop_auroc(scores, labels))
    assert metrics["image_F1"] == pytest.approx(loop_f1(scores, labels))
    assert metrics["image_AP"] == pytest.approx(loop_average_precision(scores, labels))
    maps, masks = p.maps.flatten().numpy(), p.masks.flatten().numpy()
    assert metrics["pixel_AUROC"] == pytest.approx(loop_auroc(maps, masks), abs=1e-5)
    assert metrics["pixel_F1"] == pytest.approx(loop_f1(maps, masks), abs=1e-5)
    assert metrics["false_alarm_rate"] == pytest.approx(np.mean(scores[labels == 0] > 0.5))
    assert curves["roc"][0] == (0.0, 0.0)
    assert curves["roc"][-1] == (1.0, 1.0)
    x, y = zip(*curves["roc"], strict=True)
    assert np.trapezoid(y, x) == pytest.approx(metrics["image_AUROC"], abs=1e-3)


def test_pro_is_the_mean_overlap_of_regions_up_to_thirty_percent_false_positives():
    p = predictions(KINDS)
    metrics, _, curves = compute_metrics(p, CALIBRATION)
    maps, masks = p.maps.numpy(), p.masks.numpy().astype(bool)
    points = [(0.0, 0.0)]
    for threshold in np.sort(np.unique(maps))[::-1]:
        over = maps >= threshold
        rate = (over & ~masks).sum() / (~masks).sum()
        points.append((rate, np.mean([over[i][masks[i]].mean() for i in range(len(maps)) if masks[i].any()])))
    x, y = np.array(points).T
    inside = x <= 0.3
    expected = np.trapezoid(
        np.append(y[inside], np.interp(0.3, x, y)), np.append(x[inside], 0.3)
    ) / 0.3  # fmt: skip
    assert metrics["PRO"] == pytest.approx(expected, abs=2e-3)
    assert curves["pro"][-1][0] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("kinds", "masks", "calibration", "lacking", "reason"),
    [
        (KINDS, False, CALIBRATION, PIXEL_METRICS, "The test set has no masks."),
        (["good"] * 5, True, CALIBRATION, IMAGE_METRICS + PIXEL_METRICS, "The test set has no defective images."),
        (["hole"] * 5, True, CALIBRATION, (*IMAGE_METRICS, "false_alarm_rate"), "The test set has no good images."),
        (KINDS, True, Calibration(None, None, 0, 0.05), ("false_alarm_rate",), "There were no good validation images"),
    ],
)
def test_what_cannot_be_computed_says_why(kinds, masks, calibration, lacking, reason):
    metrics, missing, _ = compute_metrics(predictions(kinds, masks), calibration)
    assert set(missing) == set(lacking)
    assert set(metrics) == set(METRICS) - set(lacking)
    assert all(text.startswith(reason) for text in missing.values())


def test_a_model_without_maps_lacks_the_figures_of_pixels(tmp_path):
    p = predictions(KINDS)
    p.maps = torch.empty(len(KINDS), 0, 0)
    metrics, missing, curves = compute_metrics(p, CALIBRATION)
    assert missing == dict.fromkeys(PIXEL_METRICS, "The model gives no anomaly maps.")
    assert set(metrics) == {*IMAGE_METRICS, "false_alarm_rate"}
    assert set(curves) == {"roc"}
    keep(p, [f"{index}.png" for index in range(len(KINDS))]).save(tmp_path / "predictions.npz")
    kept = KeptPredictions.load(tmp_path / "predictions.npz")
    assert kept.maps.shape == (16, 0, 0)
    np.testing.assert_array_equal(kept.masks, p.masks.numpy().astype(bool))


def test_alarms_are_counted_by_kind_good_first():
    p = predictions(KINDS)
    alarms = count_alarms(p, CALIBRATION)
    assert list(alarms) == ["good", "crack", "hole"]
    for kind, (found, count) in alarms.items():
        scores = [float(s) for s, k in zip(p.scores, p.kinds, strict=True) if k == kind]
        assert (found, count) == (sum(s > 0.5 for s in scores), len(scores))
    assert count_alarms(p, Calibration(None, None, 0, 0.05)) == {}


def test_notes_name_few_defects_missing_masks_and_a_budget_out_of_reach():
    single = predictions(["good"] * 5 + ["hole"])
    assert notes(single, CALIBRATION, 0.05) == [
        "Only 1 defective image in the test set: one more or less found decides."
    ]
    p = predictions(["good"] * 5 + ["hole"] * 12)
    assert notes(p, CALIBRATION, 0.05) == []
    p.masks[5:8] = 0
    (bare, budget) = notes(p, Calibration(0.5, 0.6, 9, 0.1), 0.05)
    assert bare.startswith("3 of 12 defective images have no mask")
    assert budget.startswith("9 good validation images allow a budget of 0.100, not 0.05")


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_kept_predictions_are_small_and_come_back(tmp_path, monkeypatch, scale):
    p = predictions(["good", "hole"], side=200)
    p.maps *= scale
    monkeypatch.chdir(tmp_path)
    kept = keep(p, ["a.png", "b.png"])
    assert kept.maps.shape == (2, 128, 128)
    assert kept.masks[1].any()
    assert not kept.masks[0].any()
    assert float(kept.maps.mean()) == pytest.approx(float(p.maps.mean()), rel=0.01)
    kept.save(tmp_path / "predictions.npz")
    again = KeptPredictions.load(tmp_path / "predictions.npz")
    assert again.paths == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert again.kinds == ["good", "hole"]
    assert again.maps.dtype == np.float32
    np.testing.assert_allclose(again.maps, kept.maps, rtol=1e-3)
    np.testing.assert_array_equal(again.scores, p.scores.numpy())
    assert keep(predictions(["good"], side=16), ["a.png"]).maps.shape == (1, 16, 16)
