"""The one-class protocols: which images are where, and whose pixels."""

import hashlib
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from anomalib_mixedteacher.data import OneClass
from anomalib_mixedteacher.data.one_class import CLASSES
from anomalib_mixedteacher.errors import ConfigurationError, DataError

PER_CLASS = {"train": 12, "test": 3}
CIFAR_NAMES = {"train": [f"data_batch_{index}" for index in range(1, 6)], "test": ["test_batch"]}


def split_content(dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Random images (N, H, W) or (N, H, W, 3) and their classes in a random order."""
    rng = np.random.default_rng([len(dataset), split == "test"])
    labels = rng.permutation(np.repeat(np.arange(10), PER_CLASS[split]))
    shape = (32, 32, 3) if dataset == "CIFAR10" else (28, 28)
    return rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype("u1").tobytes()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Small copies of the three data sets in the published formats."""
    for dataset in ("MNIST", "FashionMNIST"):
        folder = tmp_path / dataset / "raw"
        folder.mkdir(parents=True)
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = split_content(dataset, split)
            (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
            (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for split, names in CIFAR_NAMES.items():
        images, labels = split_content("CIFAR10", split)
        for name, part in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            pixels = np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)).reshape(len(part), -1)
            sums[name] = write_pickle(folder / name, {"data": pixels, "labels": labels[part].tolist()})
        monkeypatch.setattr(datasets.CIFAR10, f"{split}_list", [[name, sums[name]] for name in names])
    checksum = write_pickle(folder / "batches.meta", {"label_names": list(CLASSES["CIFAR10"])})
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": checksum})
    return tmp_path


def write_pickle(path: Path, content: dict) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def ready(root: Path, dataset: str = "MNIST", **arguments) -> OneClass:
    datamodule = OneClass(root=root, dataset=dataset, **arguments)
    datamodule.setup()
    return datamodule


def labels_of(dataset) -> Counter:
    return Counter(dataset.samples.label)


@pytest.mark.parametrize("dataset", CLASSES)
def test_one_class_is_normal_and_the_rest_anomalous(root, dataset):
    datamodule = ready(root, dataset, category="8", val_split_mode="none")
    assert labels_of(datamodule.train_data) == {"good": 12}
    assert labels_of(datamodule.test_data) == {
        "good": 3,
        **dict.fromkeys([*CLASSES[dataset][:8], CLASSES[dataset][9]], 3),
    }
    assert all((row.label == "good") == (row.label_index == 0) for row in datamodule.test_data.samples.itertuples())
    assert datamodule.task == "classification"


def test_the_rest_is_normal_and_one_class_anomalous(root):
    datamodule = ready(root, "CIFAR10", category="ship", protocol="rest_vs_one", val_split_mode="none")
    assert labels_of(datamodule.train_data) == {"good": 9 * 12}
    assert labels_of(datamodule.test_data) == {"good": 9 * 3, "ship": 3}


@pytest.mark.parametrize("dataset", CLASSES)
def test_files_hold_the_images_of_their_place(root, dataset):
    datamodule = ready(root, dataset, category="4", val_split_mode="none")
    for split, part in (("train", datamodule.train_data), ("test", datamodule.test_data)):
        images, labels = split_content(dataset, split)
        places = [int(Path(path).stem) for path in part.samples.image_path]
        assert sorted(places) == [i for i in range(len(labels)) if split == "test" or labels[i] == 4]
        for item, place in zip(part, places, strict=True):
            assert int(item.gt_label) == (labels[place] != 4)
            expected = (
                images[place] if dataset == "CIFAR10" else np.repeat(bilinear(images[place], 32)[..., None], 3, 2)
            )
            pixels = 255 * item.image.permute(1, 2, 0).numpy()
            np.testing.assert_allclose(pixels, expected, atol=1e-3 if dataset == "CIFAR10" else 1.01)


def bilinear(image: np.ndarray, side: int) -> np.ndarray:
    """Enlarge a square image, pixel centres at half-integers, borders repeated; Pillow rounds it twice."""
    weights = np.zeros((side, len(image)))
    for place in range(side):
        position = min(max((place + 0.5) * len(image) / side - 0.5, 0), len(image) - 1)
        low = int(position)
        weights[place, low] += 1 - (position - low)
        weights[place, min(low + 1, len(image) - 1)] += position - low
    return weights @ image @ weights.T


@pytest.mark.parametrize(("protocol", "held", "all_good"), [("one_vs_rest", 1, 12), ("rest_vs_one", 10, 108)])
def test_validation_leaves_the_official_test_whole(root, protocol, held, all_good):
    datamodule = ready(root, category="2", protocol=protocol)
    assert len(datamodule.test_data) == 30
    train, val = (set(part.samples.image_path) for part in (datamodule.train_data, datamodule.val_data))
    assert labels_of(datamodule.val_data) == {"good": held}
    assert len(train | val) == len(train) + len(val) == all_good


def test_a_second_set_up_reads_and_writes_nothing(root, monkeypatch):
    first = ready(root)
    monkeypatch.setattr(datasets, "MNIST", None)
    second = ready(root)
    assert list(second.train_data.samples.image_path) == list(first.train_data.samples.image_path)
    assert len(second.test_data) == 30


@pytest.mark.parametrize(
    ("dataset", "category", "folder"),
    [
        ("MNIST", 8, "8_eight"),
        ("MNIST", "8 - eight", "8_eight"),
        ("FashionMNIST", "t-SHIRT/Top", "t_shirt_top"),
        ("FashionMNIST", "9", "ankle_boot"),
        ("CIFAR10", "Airplane", "airplane"),
    ],
)
def test_names_and_indices_of_classes(dataset, category, folder):
    datamodule = OneClass(dataset=dataset, category=category, protocol="rest_vs_one")
    # what the Engine names the folder of results by: no separator of folders in it
    assert (datamodule.name, datamodule.category) == (f"{dataset}_rest_vs_one", folder)
    assert OneClass(dataset=dataset, category=folder).class_index == datamodule.class_index


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dataset": "KMNIST"}, "dataset is 'KMNIST': choose one of MNIST, FashionMNIST, CIFAR10"),
        ({"protocol": "all"}, "protocol is 'all': choose one of one_vs_rest, rest_vs_one"),
        ({"category": "10"}, "category is '10': choose one of 0 - zero, 1 - one"),
        ({"category": -1}, "category is '-1'"),
        ({"dataset": "CIFAR10", "category": "zebra"}, "airplane, automobile, bird, cat, deer, dog, frog, horse, ship"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, expected):
    with pytest.raises(ConfigurationError, match=expected):
        OneClass(root=tmp_path, **arguments)


@pytest.mark.parametrize("dataset", CLASSES)
def test_missing_or_damaged_copies_are_one_sentence_and_nothing_is_fetched(root, dataset, monkeypatch):
    for module in (datasets.mnist, datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", lambda *_, **__: pytest.fail("fetched"))
    folder = root / "cifar-10-batches-py" if dataset == "CIFAR10" else root / dataset / "raw"
    path = max(folder.glob("t*"))
    path.write_bytes(path.read_bytes()[:-10])
    for _ in range(2):
        with pytest.raises(DataError, match=rf"Cannot read {dataset} below .*root=.*download=True") as error:
            ready(root, dataset)
        assert "\n" not in str(error.value)
        path.unlink(missing_ok=True)


def test_what_is_missing_is_fetched_when_asked_for(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        datasets.mnist, "download_and_extract_archive", lambda url, **options: fetched.append(options["filename"])
    )
    with pytest.raises(DataError, match="Cannot read MNIST"):  # since nothing came
        ready(tmp_path, download=True)
    assert len(fetched) == 4
