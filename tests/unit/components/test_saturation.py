"""From which epoch on a loss stays near its best."""

import logging
import math
from types import SimpleNamespace

import pytest

from anomalib_mixedteacher.components.saturation import Saturation, saturation_epoch


def by_epoch(*losses: float) -> dict[int, float]:
    return dict(enumerate(losses, start=1))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (by_epoch(9, 5, 1.005, 1.0, 1.009), 3),  # near the best from the third one on
        (by_epoch(9, 1.0, 5, 1.009, 1.009), 4),  # the second was near as well, but not all that came then
        (by_epoch(1, 1, 1, 1, 1), 1),
        (by_epoch(5, 4, 3, 2, 1), 5),  # still falling
        (by_epoch(5, 1, 2, 2, 2), None),  # rises again: the end is not near the best
        (by_epoch(0, 0, 0, 0, 0), 1),
        ({2: 9.0, 4: 1.0, 6: 1.0, 8: 1.0, 10: 1.0}, 4),  # every second epoch has a validation
        (by_epoch(2, 1, 1, 1), None),  # too few
        (by_epoch(2, 1, 1, 1, math.nan), None),
        ({}, None),
    ],
)
def test_saturation_epoch(losses, expected):
    assert saturation_epoch(losses) == expected
    assert saturation_epoch(dict(reversed(losses.items()))) == expected


def test_tolerance_is_a_share_of_the_best():
    assert saturation_epoch(by_epoch(0.3, 0.0111, 0.0109, 0.011, 0.01), tolerance=0.1) == 3
    assert saturation_epoch(by_epoch(300, 110, 109, 110, 100), tolerance=0.1) == 2


def report(losses, caplog, epochs: int, resumed_after: int = 0) -> list[str]:
    """What is logged at the end of a training with these losses, that was resumed behind some of them."""
    callback = Saturation()
    for index, loss in enumerate(losses):
        metrics = {} if loss is None else {"val_loss": loss}
        state = SimpleNamespace(fn="fit")
        trainer = SimpleNamespace(callback_metrics=metrics, state=state, sanity_checking=False, current_epoch=index)
        callback.on_validation_end(trainer, None)
        if index + 1 == resumed_after:
            state = callback.state_dict()
            callback = Saturation()
            callback.load_state_dict(state)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        callback.on_train_end(SimpleNamespace(current_epoch=epochs), None)
    return caplog.messages


@pytest.mark.parametrize("resumed_after", [0, 4])
def test_says_how_many_epochs_would_have_done(caplog, resumed_after):
    messages = report([9, 5, 3, 1, 1, 1, 1, 1, 1, 1], caplog, 10, resumed_after)
    assert messages == ["Validation loss was within 1 % of its best from epoch 4 of 10 on: try max_epochs=4."]


@pytest.mark.parametrize("losses", [[9, 8, 7, 6, 5, 4, 3, 2, 1, 1], [None] * 10, [1, 1, 1, 1], []])
def test_says_nothing_where_that_would_not_help(caplog, losses):
    assert report(losses, caplog, 10) == []
