"""Errors of others that a user can mend."""

import pytest
import torch
from torch import nn

from anomalib_mixedteacher.errors import sentence


def test_a_single_value_for_batch_normalisation():
    with pytest.raises(ValueError, match="more than 1 value") as info:
        nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1))
    assert "choose a batch size that leaves no single image over" in sentence(info.value)
    assert sentence(ValueError("anything else")) is None
