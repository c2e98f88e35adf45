"""Samples of the training images, from loaders of every kind."""

import pytest
import torch
from anomalib.data import ImageBatch, ImageItem
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from anomalib_mixedteacher.components.training_data import sample_batches


class Numbers(Dataset):
    """Nine images, each filled with its own number."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return ImageItem(image=torch.full((3, 32, 32), float(index)), gt_label=torch.tensor(False))


class Pairs:
    """A batch sampler of one's own, that has no batch size."""

    def __iter__(self):
        return iter([[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({"batch_size": 2}, [2, 2, 1]),
        ({"batch_sampler": BatchSampler(SequentialSampler(Numbers()), 3, drop_last=False)}, [3, 2]),
        ({"batch_sampler": Pairs()}, [5]),
    ],
)
def test_images_are_spread_evenly_in_the_loaders_batches(arguments, sizes):
    loader = DataLoader(Numbers(), collate_fn=ImageBatch.collate, **arguments)
    batches = list(sample_batches(loader, 5))
    assert [len(batch.image) for batch in batches] == sizes
    assert torch.cat([batch.image[:, 0, 0, 0] for batch in batches]).tolist() == [0, 2, 4, 6, 8]
