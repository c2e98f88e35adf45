"""The one-class protocols: which images are where, whose pixels, from which files, and what those files cannot do."""

import gzip
import os
import pickle
import re
import socket
import struct
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from anomalib_mixedteacher.data import _one_class_files as files
from anomalib_mixedteacher.data.one_class import OneClass, OneClassDataset
from anomalib_mixedteacher.errors import ConfigurationError, DataError

DATASETS = ["MNIST", "FashionMNIST", "CIFAR10"]
PER_CLASS = {"train": 12, "test": 3}
IDX_PREFIX = {"train": "train", "test": "t10k"}
CIFAR_NAMES = {"train": [f"data_batch_{index}" for index in range(1, 6)], "test": ["test_batch"]}
FOLDERS = {"MNIST": "MNIST/raw", "FashionMNIST": "FashionMNIST/raw", "CIFAR10": "cifar-10-batches-py"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        msg = "no network in tests"
        raise OSError(msg)

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def split_content(dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Random images (N, H, W) or (N, H, W, 3) and their classes in a random order."""
    rng = np.random.default_rng([DATASETS.index(dataset), split == "test"])
    labels = rng.permutation(np.repeat(np.arange(10), PER_CLASS[split]))
    shape = (32, 32, 3) if dataset == "CIFAR10" else (28, 28)
    return rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def rows(images: np.ndarray) -> np.ndarray:
    """Images (N, 32, 32, 3) as CIFAR-10 stores them: red, green, blue plane after plane, (N, 3072)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def python3_batch(images: np.ndarray, labels: np.ndarray, protocol: int = 4) -> bytes:
    return pickle.dumps({"data": rows(images), "labels": labels.tolist()}, protocol=protocol)


def python2_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A pickle as Python 2 wrote the published files: its strings are of its own kind, numpy has its old names."""
    raw = rows(images).tobytes()
    shape = b"".join(b"M" + struct.pack("<H", size) for size in rows(images).shape)
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    array += b"(K\x01(" + shape + b"t" + dtype + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def write_split(
    root: Path, dataset: str, split: str, images: np.ndarray, labels: np.ndarray, batch=python3_batch
) -> None:
    folder = root / FOLDERS[dataset]
    folder.mkdir(parents=True, exist_ok=True)
    if dataset == "CIFAR10":
        names = CIFAR_NAMES[split]
        for name, part in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            (folder / name).write_bytes(batch(images[part], labels[part]))
    else:
        (folder / f"{IDX_PREFIX[split]}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{IDX_PREFIX[split]}-labels-idx1-ubyte").write_bytes(idx(labels))


def write(root: Path, dataset: str, **options) -> Path:
    for split in PER_CLASS:
        write_split(root, dataset, split, *split_content(dataset, split), **options)
    return root / FOLDERS[dataset]


def compress(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def ready(root: Path, dataset: str = "MNIST", **arguments) -> OneClass:
    datamodule = OneClass(root=root, dataset=dataset, **arguments)
    datamodule.setup()
    return datamodule


def labels_of(dataset) -> Counter:
    return Counter(dataset.samples.label)


def paths_of(dataset) -> list[str]:
    return list(dataset.samples.image_path)


def pngs(root: Path) -> dict[str, int]:
    """Time of last change of each PNG, by its path below the folder of PNGs."""
    folder = root / "one_class"
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def message(error: type[Exception], action) -> str:
    """The message of the error that an action raises, checked to be one sentence."""
    with pytest.raises(error) as caught:
        action()
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert ". " not in text
    return text


# Protocols


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("index", [0, 8])
def test_one_class_is_normal_and_the_rest_anomalous(tmp_path, dataset, index):
    write(tmp_path, dataset)
    datamodule = ready(tmp_path, dataset, category=str(index), val_split_mode="none")
    names = files.CLASSES[dataset]
    assert labels_of(datamodule.train_data) == {"good": 12}
    expected = {"good": 3, **{name: 3 for place, name in enumerate(names) if place != index}}
    assert labels_of(datamodule.test_data) == expected
    samples = datamodule.test_data.samples
    assert ((samples.label == "good") == (samples.label_index == 0)).all()
    assert {Path(path).parent.name for path in paths_of(datamodule.train_data)} == {str(index)}
    assert {Path(path).parent.name for path in samples.image_path[samples.label == "good"]} == {str(index)}
    assert set(datamodule.train_data.samples.split) == {"train"}
    assert set(samples.split) == {"test"}
    assert datamodule.task == "classification"


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_rest_is_normal_and_one_class_anomalous(tmp_path, dataset):
    write(tmp_path, dataset)
    datamodule = ready(tmp_path, dataset, category="8", protocol="rest_vs_one", val_split_mode="none")
    assert labels_of(datamodule.train_data) == {"good": 9 * 12}
    assert labels_of(datamodule.test_data) == {"good": 9 * 3, files.CLASSES[dataset][8]: 3}
    assert {Path(path).parent.name for path in paths_of(datamodule.train_data)} == set("012345679")


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_class_folder_holds_its_images(tmp_path, dataset):
    write(tmp_path, dataset)
    datamodule = ready(tmp_path, dataset, category="4", val_split_mode="none")
    for split, part in (("train", datamodule.train_data), ("test", datamodule.test_data)):
        _, labels = split_content(dataset, split)
        wanted = [place for place in range(len(labels)) if split == "test" or labels[place] == 4]
        folder = tmp_path / "one_class" / dataset / split
        assert paths_of(part) == sorted(str(folder / str(labels[place]) / f"{place:05d}.png") for place in wanted)


@pytest.mark.parametrize("protocol", ["one_vs_rest", "rest_vs_one"])
def test_validation_leaves_the_official_test_whole(tmp_path, protocol):
    write(tmp_path, "MNIST")
    datamodule = ready(tmp_path, category="2", protocol=protocol)
    assert len(datamodule.test_data) == 30
    train, val = paths_of(datamodule.train_data), paths_of(datamodule.val_data)
    assert labels_of(datamodule.val_data) == {"good": {"one_vs_rest": 1, "rest_vs_one": 10}[protocol]}
    assert len(set(train) | set(val)) == len(train) + len(val) == {"one_vs_rest": 12, "rest_vs_one": 108}[protocol]
    assert paths_of(ready(tmp_path, category="2", protocol=protocol).val_data) == val
    assert any(
        paths_of(ready(tmp_path, category="2", protocol=protocol, seed=seed).val_data) != val for seed in range(1, 4)
    )


def test_other_validation_modes(tmp_path):
    write(tmp_path, "MNIST")
    same = ready(tmp_path, val_split_mode="same_as_test")
    assert paths_of(same.val_data) == paths_of(same.test_data)
    halves = ready(tmp_path, val_split_mode="from_test", val_split_ratio=0.5)
    assert len(halves.test_data) + len(halves.val_data) == 30
    assert not set(paths_of(halves.test_data)) & set(paths_of(halves.val_data))
    assert len(halves.train_data) == 12
    painted = ready(tmp_path, val_split_mode="synthetic", val_split_ratio=0.5)
    assert painted.val_data.has_anomalous
    assert len(painted.test_data) == 30


def test_both_splits_make_one_data_set(tmp_path):
    write(tmp_path, "FashionMNIST")
    both = OneClassDataset(tmp_path, "FashionMNIST", "Bag")
    assert Counter(both.samples.split) == {"train": 12, "test": 30}
    assert both.category == "bag"


# Pixels


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_every_protocol_keep_their_pixels(tmp_path, protocol):
    write(tmp_path, "CIFAR10", batch=partial(python3_batch, protocol=protocol))
    check_cifar(tmp_path)


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_pickles_of_python_2_keep_their_pixels(tmp_path):
    write(tmp_path, "CIFAR10", batch=python2_batch)
    images, labels = split_content("CIFAR10", "test")
    # The hand-made file is one that torchvision's way of reading takes.
    batch = pickle.loads((tmp_path / FOLDERS["CIFAR10"] / "test_batch").read_bytes(), encoding="latin1")
    np.testing.assert_array_equal(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), images)
    assert batch["labels"] == labels.tolist()
    check_cifar(tmp_path)


def check_cifar(root: Path) -> None:
    datamodule = ready(root, "CIFAR10", category="deer", val_split_mode="none")
    for split, part in (("train", datamodule.train_data), ("test", datamodule.test_data)):
        images, _ = split_content("CIFAR10", split)
        for item in part:
            expected = images[int(Path(item.image_path).stem)]
            np.testing.assert_array_equal(np.asarray(Image.open(item.image_path)), expected)
            assert item.image.dtype == torch.float32
            np.testing.assert_array_equal((item.image * 255).round().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("compressed", [False, True])
def test_small_images_are_enlarged_bilinearly(tmp_path, dataset, compressed):
    folder = write(tmp_path, dataset)
    if compressed:
        compress(folder)
    images, _ = split_content(dataset, "test")
    for item in ready(tmp_path, dataset).test_data:
        source = images[int(Path(item.image_path).stem)]
        pixels = np.asarray(Image.open(item.image_path))
        np.testing.assert_array_equal(pixels, Image.fromarray(source).resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(pixels, bilinear(source, 32), atol=1.01)  # Pillow rounds after rows and columns
        for channel in item.image:
            np.testing.assert_array_equal((channel * 255).round().numpy(), pixels)


def bilinear(image: np.ndarray, side: int) -> np.ndarray:
    """Enlarge a square image, pixel centres at half-integers, borders repeated; not rounded."""
    weights = np.zeros((side, len(image)))
    for place in range(side):
        position = min(max((place + 0.5) * len(image) / side - 0.5, 0), len(image) - 1)
        low = int(position)
        weights[place, low] += 1 - (position - low)
        weights[place, min(low + 1, len(image) - 1)] += position - low
    return weights @ image @ weights.T


@pytest.mark.parametrize("dataset", DATASETS)
def test_loaders_give_float_images_of_three_channels(tmp_path, dataset):
    write(tmp_path, dataset)
    datamodule = OneClass(root=tmp_path, dataset=dataset, category="5", train_batch_size=4, eval_batch_size=7)
    datamodule.prepare_data()
    datamodule.setup()
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.image.shape == (4, 3, 32, 32)
    assert batch.image.dtype == torch.float32
    assert batch.image.min() >= 0
    assert 0.9 < batch.image.max() <= 1
    assert not batch.gt_label.any()
    tested = list(datamodule.test_dataloader())
    assert sum(len(batch.image) for batch in tested) == 30
    assert torch.cat([batch.gt_label for batch in tested]).sum() == 27
    assert all(batch.gt_mask is None for batch in tested)
    assert sum(len(batch.image) for batch in datamodule.val_dataloader()) == 1


# Arguments


@pytest.mark.parametrize(
    ("dataset", "category", "folder"),
    [
        ("MNIST", "8", "8_eight"),
        ("MNIST", 8, "8_eight"),
        ("MNIST", "8 - eight", "8_eight"),
        ("FashionMNIST", "T-shirt/top", "t_shirt_top"),
        ("FashionMNIST", "t-SHIRT/Top", "t_shirt_top"),
        ("FashionMNIST", "9", "ankle_boot"),
        ("FashionMNIST", "Shirt", "shirt"),
        ("CIFAR10", "Airplane", "airplane"),
        ("CIFAR10", "9", "truck"),
    ],
)
def test_names_and_indices_of_classes(dataset, category, folder):
    datamodule = OneClass(dataset=dataset, category=category, protocol="rest_vs_one")
    # What the Engine names the folder of results by: no separator of folders in it.
    assert (datamodule.name, datamodule.category) == (f"{dataset}_rest_vs_one", folder)
    assert OneClass(dataset=dataset, category=folder).selection.index == datamodule.selection.index


def test_classes_are_numbered_as_torchvision_does():
    assert files.CLASSES["MNIST"] == tuple(torchvision.datasets.MNIST.classes)
    assert files.CLASSES["FashionMNIST"] == tuple(torchvision.datasets.FashionMNIST.classes)
    names = "airplane automobile bird cat deer dog frog horse ship truck"  # www.cs.toronto.edu/~kriz/cifar.html
    assert files.CLASSES["CIFAR10"] == tuple(names.split())


def test_configuration_files_may_give_a_number():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(OneClass, "data")
    parsed = parser.parse_object({"data": {"category": 8, "dataset": "FashionMNIST"}})
    assert parser.instantiate_classes(parsed).data.category == "bag"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dataset": "KMNIST"}, "Unknown data set 'KMNIST': choose one of MNIST, FashionMNIST, CIFAR10"),
        ({"protocol": "all"}, "Unknown protocol 'all': choose one of one_vs_rest, rest_vs_one"),
        ({"category": "10"}, "Unknown class '10' of MNIST: choose one of 0 - zero, 1 - one"),
        ({"category": -1}, "Unknown class '-1' of MNIST"),
        ({"category": ""}, "Unknown class '' of MNIST"),
        ({"dataset": "CIFAR10", "category": "zebra"}, "airplane, automobile, bird, cat, deer, dog, frog, horse, ship"),
        ({"val_split_mode": "from_dir"}, "MNIST_one_vs_rest has no validation folder"),
        ({"val_split_ratio": 1.5}, "val_split_ratio is 1.5"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, expected):
    assert expected in message(ConfigurationError, lambda: OneClass(root=tmp_path, **arguments))


# Missing and damaged copies


@pytest.mark.parametrize("dataset", DATASETS)
def test_missing_copy_says_what_belongs_where(tmp_path, dataset):
    text = message(DataError, lambda: ready(tmp_path, dataset))
    assert all(word in text for word in (dataset, FOLDERS[dataset], "download=True", "root="))
    folder = write(tmp_path, dataset)
    lost = max(folder.iterdir())
    lost.unlink()
    assert f"{dataset} lacks {lost.name} in {folder}" in message(DataError, lambda: ready(tmp_path, dataset))
    assert not (tmp_path / "one_class").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES = {
    "MNIST": [
        ("t10k-images-idx3-ubyte", truncate, "Cannot read .*t10k-images-idx3-ubyte .*published file"),
        ("t10k-images-idx3-ubyte", lambda path: path.write_bytes(b""), "Cannot read .*t10k-images.*not an IDX file"),
        ("train-labels-idx1-ubyte", lambda path: path.write_bytes(idx(np.zeros((2, 2)))), "labels.*not an IDX file"),
        ("train-labels-idx1-ubyte", lambda path: path.write_bytes(idx(np.zeros(119))), "120 images .* 119 classes"),
        ("train-labels-idx1-ubyte", lambda path: path.write_bytes(idx(np.full(120, 10))), "in 0 to 9"),
        ("train-images-idx3-ubyte", lambda path: path.write_bytes(idx(np.zeros((120, 28, 27)))), r"\(28, 27\)"),
    ],
    "CIFAR10": [
        ("data_batch_3", truncate, "Cannot read .*data_batch_3 .*published file.*download=True"),
        ("data_batch_3", lambda path: path.write_bytes(b""), "Cannot read .*data_batch_3"),
        ("test_batch", lambda path: path.write_bytes(pickle.dumps([1, 2])), "Cannot read .*test_batch"),
        ("test_batch", lambda path: path.write_bytes(pickle.dumps({"labels": [1]})), "Cannot read .*test_batch"),
        ("test_batch", lambda path: path.write_bytes(pickle.dumps({"data": 1, "labels": [1]})), "Cannot read .*test_"),
        (
            "test_batch",
            lambda path: path.write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.int64), "labels": [1, 2]})),
            "Cannot read .*test_batch",
        ),
        (
            "test_batch",
            lambda path: path.write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]})),
            "2 images .* 1 classes",
        ),
    ],
}


@pytest.mark.parametrize(
    ("dataset", "name", "damage", "expected"),
    [(dataset, *case) for dataset, cases in DAMAGES.items() for case in cases],
)
def test_damaged_copy_is_named(tmp_path, dataset, name, damage, expected):
    damage(write(tmp_path, dataset) / name)
    text = message(DataError, lambda: ready(tmp_path, dataset))
    assert re.search(expected, text)


def test_damaged_compressed_copy_is_named(tmp_path):
    folder = write(tmp_path, "MNIST")
    compress(folder)
    truncate(folder / "train-images-idx3-ubyte.gz")
    assert "train-images-idx3-ubyte.gz" in message(DataError, lambda: ready(tmp_path))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip at all")
    assert "train-images-idx3-ubyte.gz" in message(DataError, lambda: ready(tmp_path))


def rewrite_without(root: Path, split: str, absent) -> None:
    images, labels = split_content("MNIST", split)
    kept = ~np.isin(labels, absent)
    write_split(root, "MNIST", split, images[kept], labels[kept])


@pytest.mark.parametrize(
    ("protocol", "split", "absent", "expected"),
    [
        ("one_vs_rest", "train", [3], "The train files of MNIST below {root} hold no image of 3 - three:"),
        ("one_vs_rest", "test", [3], "The test files of MNIST below {root} hold no image of 3 - three:"),
        ("one_vs_rest", "test", [0, 1, 2, 4, 5, 6, 7, 8, 9], "hold no image of a class other than 3 - three:"),
        ("rest_vs_one", "train", [0, 1, 2, 4, 5, 6, 7, 8, 9], "hold no image of a class other than 3 - three:"),
        ("rest_vs_one", "test", [3], "The test files of MNIST below {root} hold no image of 3 - three:"),
        ("rest_vs_one", "test", range(10), "The test files of MNIST below {root} hold no image of 3 - three:"),
    ],
)
def test_a_root_without_a_class_that_is_needed(tmp_path, protocol, split, absent, expected):
    write(tmp_path, "MNIST")
    rewrite_without(tmp_path, split, absent)
    text = message(DataError, lambda: ready(tmp_path, category="3", protocol=protocol))
    assert expected.format(root=tmp_path) in text


def test_a_class_that_is_not_needed_may_be_absent(tmp_path):
    write(tmp_path, "MNIST")
    rewrite_without(tmp_path, "train", [3])
    assert len(ready(tmp_path, category="3", protocol="rest_vs_one", val_split_mode="none").train_data) == 9 * 12
    rewrite_without(tmp_path, "test", [5])
    assert "5 - five" not in labels_of(ready(tmp_path, category="2").test_data)


# Pickles from an unknown source


class Command:
    """What a malicious file holds: unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["whole", "data", "labels", "other"])
def test_code_in_a_pickle_is_not_run(tmp_path, protocol, place):
    folder, trace = write(tmp_path, "CIFAR10"), tmp_path / "trace"
    images, labels = split_content("CIFAR10", "test")
    batch = {"data": rows(images), "labels": labels.tolist(), place: Command(trace)}
    content = pickle.dumps(Command(trace) if place == "whole" else batch, protocol=protocol)
    pickle.loads(content)
    assert trace.is_dir()
    trace.rmdir()
    (folder / "test_batch").write_bytes(content)
    text = message(DataError, lambda: ready(tmp_path, "CIFAR10"))
    assert "test_batch" in text
    assert f"asks to run {os.mkdir.__module__}.mkdir" in text
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(Vopen('trace', 'w')\ntR.",
        b"cnumpy\nndarray.tofile\n(Vtrace\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"cnumpy\nload\n(Vtrace\ntR.",
        b"(Vtrace\nios\nmkdir\n.",
    ],
)
def test_other_ways_to_call_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (write(tmp_path, "CIFAR10") / "test_batch").write_bytes(content)
    assert "asks to run" in message(DataError, lambda: ready(tmp_path, "CIFAR10"))
    assert not (tmp_path / "trace").exists()


# Download


def record_downloads(monkeypatch, root: Path) -> list[str]:
    """Replace what fetches MNIST's files: it writes them as fetched and unpacked ones lie there."""
    fetched = []

    def fetch(url, download_root, filename, md5):
        fetched.append(filename)
        write(root, "MNIST")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fetch)
    return fetched


def test_nothing_is_fetched_unless_asked_for(tmp_path, monkeypatch):
    fetched = record_downloads(monkeypatch, tmp_path)
    datamodule = OneClass(root=tmp_path)
    for action in (datamodule.prepare_data, datamodule.setup):
        message(DataError, action)
    assert not fetched
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prepare", [False, True])
def test_what_is_missing_is_fetched_when_asked_for(tmp_path, monkeypatch, prepare):
    fetched = record_downloads(monkeypatch, tmp_path)
    datamodule = OneClass(root=tmp_path, download=True)
    if prepare:
        datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.test_data) == 30
    assert set(fetched) == {f"{IDX_PREFIX[s]}-{k}-ubyte.gz" for s in PER_CLASS for k in ("images-idx3", "labels-idx1")}
    fetched.clear()
    ready(tmp_path, download=True)
    assert not fetched


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_local_copy_is_used_and_not_replaced(tmp_path, monkeypatch, dataset):
    folder = write(tmp_path, dataset)
    monkeypatch.setattr(torchvision.datasets, dataset, lambda *a, **k: pytest.fail("asked torchvision"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(ready(tmp_path, dataset, download=True).test_data) == 30
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dataset", DATASETS)
def test_failed_download_is_one_sentence(tmp_path, dataset):
    text = message(DataError, lambda: ready(tmp_path, dataset, download=True))
    assert text.startswith(f"Cannot download {dataset} to {tmp_path} (")
    assert "no network in tests" in text
    assert FOLDERS[dataset] in text


# The PNG files


def test_a_second_set_up_writes_nothing(tmp_path, monkeypatch):
    write(tmp_path, "MNIST")
    first = ready(tmp_path)
    before = pngs(tmp_path)
    assert len(before) == 12 + 30
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: pytest.fail("written again"))
    second = OneClass(root=tmp_path)
    second.prepare_data()
    second.setup()
    assert pngs(tmp_path) == before
    assert paths_of(second.train_data) == paths_of(first.train_data)


def test_compressed_or_not_it_is_the_same_source(tmp_path, monkeypatch):
    folder = write(tmp_path, "MNIST")
    ready(tmp_path)
    compress(folder)
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: pytest.fail("written again"))
    ready(tmp_path)


def test_only_the_classes_of_the_training_are_written(tmp_path):
    write(tmp_path, "MNIST")
    ready(tmp_path, category="3")
    assert {name.rsplit("/", 1)[0] for name in pngs(tmp_path) if "/train/" in name} == {"MNIST/train/3"}


def test_a_changed_source_is_written_anew(tmp_path):
    write(tmp_path, "CIFAR10")
    ready(tmp_path, "CIFAR10")
    before = pngs(tmp_path)
    images, labels = split_content("CIFAR10", "test")
    place = int(np.flatnonzero(labels == 6)[0])
    images[place] = 7
    write_split(tmp_path, "CIFAR10", "test", images, labels)
    ready(tmp_path, "CIFAR10")
    after = pngs(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {
        f"CIFAR10/test/6/{index:05d}.png" for index in np.flatnonzero(labels == 6)
    }
    assert (np.asarray(Image.open(tmp_path / f"one_class/CIFAR10/test/6/{place:05d}.png")) == 7).all()


def test_changed_classes_move_the_images(tmp_path):
    write(tmp_path, "MNIST")
    ready(tmp_path)
    images, labels = split_content("MNIST", "test")
    write_split(tmp_path, "MNIST", "test", images, (labels + 1) % 10)
    ready(tmp_path)
    for index in range(10):
        names = {path.name for path in (tmp_path / f"one_class/MNIST/test/{index}").glob("*.png")}
        assert names == {f"{place:05d}.png" for place in np.flatnonzero((labels + 1) % 10 == index)}


def test_a_lost_file_is_written_again(tmp_path):
    write(tmp_path, "MNIST")
    lost = Path(ready(tmp_path).test_data.samples.image_path[4])
    content = lost.read_bytes()
    lost.unlink()
    assert len(ready(tmp_path).test_data) == 30
    assert lost.read_bytes() == content


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing_half_written(tmp_path, monkeypatch, error):
    write(tmp_path, "MNIST")
    save, calls = Image.Image.save, []

    def stop(image, path, *arguments, **options):
        calls.append(path)
        if len(calls) == 5:
            raise error
        save(image, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", stop)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                ready(tmp_path)
        else:
            text = message(DataError, lambda: ready(tmp_path))
            assert "No space left on device" in text
            assert "root=" in text
    assert len(calls) == 5
    assert not [path for path in (tmp_path / "one_class").rglob("*") if path.is_file()]
    assert len(ready(tmp_path).test_data) == 30
    assert len(pngs(tmp_path)) == 12 + 30
    assert not list((tmp_path / "one_class").rglob(".*"))


def test_an_interrupted_rewriting_keeps_what_was_whole(tmp_path, monkeypatch):
    write(tmp_path, "MNIST")
    ready(tmp_path)
    before = pngs(tmp_path)
    images, labels = split_content("MNIST", "train")
    write_split(tmp_path, "MNIST", "train", 255 - images, labels)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            ready(tmp_path)
    assert pngs(tmp_path) == before
    ready(tmp_path)
    assert {name for name, time in pngs(tmp_path).items() if time != before[name]} == {
        name for name in before if "/train/" in name
    }


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    write(tmp_path, "MNIST")
    (tmp_path / "one_class").write_text("not a folder")
    text = message(DataError, lambda: ready(tmp_path))
    assert f"Cannot write images to {tmp_path / 'one_class'}" in text


def test_a_faster_process_provides_the_folder(tmp_path, monkeypatch):
    for name in ("own", "other"):
        write(tmp_path / name, "MNIST")
    ready(tmp_path / "other")
    rename = Path.rename

    def lose_the_race(work, target):
        place = Path(target).relative_to(tmp_path / "own")
        rename(tmp_path / "other" / place, target)
        return rename(work, target)

    monkeypatch.setattr(Path, "rename", lose_the_race)
    assert len(ready(tmp_path / "own").test_data) == 30
    assert not pngs(tmp_path / "other")
    assert not list((tmp_path / "own" / "one_class").rglob(".*"))


def test_files_of_a_faster_process_stay(tmp_path, monkeypatch):
    for name in ("own", "other"):
        write(tmp_path / name, "MNIST")
    ready(tmp_path / "other")
    before = pngs(tmp_path / "other")
    save = Image.Image.save

    def be_overtaken(image, path, *arguments, **options):
        save(image, path, *arguments, **options)
        target = path.parent.with_name(path.parent.name[1:].split("-")[0])
        if not target.exists():
            (tmp_path / "other" / target.relative_to(tmp_path / "own")).rename(target)

    monkeypatch.setattr(Image.Image, "save", be_overtaken)
    ready(tmp_path / "own")
    assert pngs(tmp_path / "own") == before
