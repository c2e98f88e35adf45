"""The generated data set: layout, cache, determinism, and each mistake a user can make."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_mixedteacher.data import SyntheticTextures, SyntheticTexturesDataset, _generate
from anomalib_mixedteacher.data.defects import DEFECTS
from anomalib_mixedteacher.data.textures import FAMILIES
from anomalib_mixedteacher.errors import ConfigurationError, DataError

SMALL = {"image_size": 48, "num_train": 3, "num_test_good": 2, "num_defects_per_kind": 2}


def make(root: Path, **overrides) -> SyntheticTextures:
    return SyntheticTextures(root=root, **{**SMALL, **overrides})


def digests(root: Path) -> dict[str, str]:
    """Hash each file by its path inside the category."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {"/".join(path.parts[-3:]): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("category", FAMILIES)
def test_categories_have_every_defect_with_its_mask(tmp_path, category):
    datamodule = make(tmp_path, category=category, val_split_mode="same_as_test")
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.category == category
    assert len(datamodule.train_data) == 3
    assert set(datamodule.train_data.samples.label) == {"good"}
    assert datamodule.test_data.samples.label.value_counts().to_dict() == {"good": 2, **dict.fromkeys(DEFECTS, 2)}
    for item in datamodule.test_data:
        assert item.image.shape == (3, 48, 48)
        assert item.gt_mask.shape == (48, 48)
        assert item.gt_mask.dtype in (torch.uint8, torch.bool)
        assert bool(item.gt_mask.any()) == bool(item.gt_label)
        assert bool(item.gt_label) == ("/good/" not in Path(item.image_path).as_posix())


def test_files_on_disk_hold_the_rendered_pixels(tmp_path):
    dataset = SyntheticTexturesDataset(root=tmp_path, category="weave", **SMALL)
    image, mask = _generate.render("weave", 48, 0, "test", "scratch", 1)
    folder = dataset.root_category
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "test/scratch/001.png")), np.round(image * 255))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "ground_truth/scratch/001_mask.png")), mask * 255)


def test_same_arguments_give_the_same_bytes(tmp_path):
    make(tmp_path / "a").prepare_data()
    make(tmp_path / "b").prepare_data()
    first = digests(tmp_path / "a")
    assert len(first) == 3 + 2 + 6 * 2 * 2
    assert first == digests(tmp_path / "b")
    make(tmp_path / "c", seed=1).prepare_data()
    other = digests(tmp_path / "c")
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first if name.startswith("train"))


def test_more_images_leave_the_first_ones_unchanged(tmp_path):
    make(tmp_path / "few").prepare_data()
    make(tmp_path / "many", num_train=5, num_test_good=3, num_defects_per_kind=3).prepare_data()
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    assert len(many) > len(few)
    assert few.items() <= many.items()


@pytest.mark.parametrize("count", [2, 1000, 1001])
def test_images_keep_their_masks_beyond_a_thousand(tmp_path, monkeypatch, count):
    image = np.random.default_rng(0).random((32, 32, 3))
    masks = [np.arange(32 * 32).reshape(32, 32) == index for index in range(count)]

    def render(category, size, seed, split, defect, index):
        return image, masks[index]

    monkeypatch.setattr(_generate, "render", render)
    monkeypatch.setattr(_generate, "DEFECTS", ["blot"])
    sizes = {"image_size": 32, "num_train": 1, "num_test_good": 1, "num_defects_per_kind": count}
    samples = SyntheticTexturesDataset(root=tmp_path, split="test", **sizes).samples
    samples = samples[samples.label_index == 1]
    assert len(samples) == count
    pairs = [(Path(row.image_path).stem, Path(row.mask_path).stem) for row in samples.itertuples()]
    assert all(mask == f"{image}_mask" for image, mask in pairs)
    assert pairs[0][0] == ("000" if count <= 1000 else "0000")
    (folder,) = (tmp_path).glob("v*/weave")
    assert {path.name for path in folder.glob("*/good/*")} == {"000.png"}


def test_a_second_datamodule_does_not_write_again(tmp_path, monkeypatch):
    make(tmp_path).prepare_data()
    monkeypatch.setattr(_generate, "render", lambda *_: pytest.fail("generated again"))
    datamodule = make(tmp_path)
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.train_data) == 3


@pytest.mark.parametrize("argument", [{"seed": 1}, {"image_size": 40}, {"num_train": 4}, {"num_defects_per_kind": 1}])
def test_other_arguments_get_a_folder_of_their_own(tmp_path, argument):
    make(tmp_path).prepare_data()
    make(tmp_path, **argument).prepare_data()
    assert len(list(tmp_path.iterdir())) == 2


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    original, calls = _generate.render, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(_generate, "render", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).prepare_data()
    assert len(calls) == 5
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr(_generate, "render", original)
    make(tmp_path).prepare_data()
    assert len(digests(tmp_path)) == 29


def test_a_faster_process_provides_the_folder(tmp_path, monkeypatch):
    make(tmp_path / "other").prepare_data()
    (source,) = (tmp_path / "other").iterdir()
    write = _generate._write

    def lose_the_race(folder, recipe):
        write(folder, recipe)
        source.joinpath("weave").rename(folder.with_name("weave"))

    monkeypatch.setattr(_generate, "_write", lose_the_race)
    make(tmp_path / "own").prepare_data()
    assert [path.name for path in (tmp_path / "own" / source.name).iterdir()] == ["weave"]


def test_validation_takes_half_of_the_test_by_default(tmp_path):
    datamodule = make(tmp_path)
    datamodule.setup()
    validation, test = set(datamodule.val_data.samples.image_path), set(datamodule.test_data.samples.image_path)
    assert len(validation) == len(test) == 7
    assert not validation & test
    assert datamodule.val_data.has_normal
    assert datamodule.val_data.has_anomalous


def test_one_training_image_is_enough(tmp_path):
    datamodule = make(tmp_path, num_train=1)
    datamodule.setup()
    (batch,) = list(datamodule.train_dataloader())
    assert batch.image.shape == (1, 3, 48, 48)
    assert sum(len(batch.image) for batch in datamodule.test_dataloader()) == 7


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ANOMALIB_MIXEDTEACHER_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own/synthetic_textures"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/anomalib_mixedteacher/synthetic_textures"),
        ({"HOME": "home"}, "home/.cache/anomalib_mixedteacher/synthetic_textures"),
    ],
)
def test_default_cache_folder(tmp_path, monkeypatch, environment, expected):
    for name in ("ANOMALIB_MIXEDTEACHER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert _generate.cache_root(None) == tmp_path / expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"category": "denim"}, "choose one of weave, grain, grid, cells, speckle"),
        ({"image_size": 31}, "smaller than 32 pixels"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_test_good": 0}, "num_test_good is 0"),
        ({"num_defects_per_kind": -1}, "num_defects_per_kind is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"val_split_mode": "from_dir"}, "set val_split_mode to"),
        ({"val_split_ratio": 1.5}, "val_split_ratio is 1.5"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, argument, message):
    with pytest.raises(ConfigurationError, match=message):
        make(tmp_path, **argument)


def test_unwritable_cache_is_reported_with_its_remedy(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(DataError, match=r"Cannot write the generated textures to .*file.*set root="):
        make(blocker).prepare_data()


def test_path_that_anomalib_cannot_read_is_refused_before_writing(tmp_path):
    with pytest.raises(DataError, match="ASCII"):
        make(tmp_path / "größe")
    assert not list(tmp_path.iterdir())


def test_lost_file_is_named(tmp_path):
    datamodule = make(tmp_path)
    datamodule.prepare_data()
    lost = next(tmp_path.rglob("ground_truth/hole/001_mask.png"))
    lost.unlink()
    with pytest.raises(DataError, match="001_mask.png: delete the folder"):
        datamodule.setup()


def test_unreadable_and_tiny_files_are_named(tmp_path):
    dataset = SyntheticTexturesDataset(root=tmp_path, **SMALL)
    first = dataset.samples.iloc[0]
    image, mask = Path(first.image_path), Path(first.mask_path)
    pixels, mask_pixels = image.read_bytes(), mask.read_bytes()

    image.write_bytes(pixels[: len(pixels) // 2])
    with pytest.raises(DataError, match=f"Cannot read the image .*{image.name}.*replace the file"):
        dataset[0]
    image.write_text("no image")
    with pytest.raises(DataError, match="Cannot read the image"):
        dataset[0]
    Image.new("RGB", (48, 31)).save(image)
    with pytest.raises(DataError, match="48 x 31 pixels, smaller than 32 pixels"):
        dataset[0]
    image.write_bytes(pixels)
    mask.write_bytes(mask_pixels[:20])
    with pytest.raises(DataError, match=f"Cannot read the mask .*{mask.name}"):
        dataset[0]
    Image.new("L", (10, 48)).save(mask)
    with pytest.raises(DataError, match="mask .* is 10 x 48 pixels but its image is 48 x 48"):
        dataset[0]


def test_anomalibs_factory_gives_the_size_as_a_pair(tmp_path):
    from anomalib.data import get_datamodule

    arguments = {"root": str(tmp_path), "image_size": 48, "num_train": 2}
    datamodule = get_datamodule({"class_path": "SyntheticTextures", "init_args": arguments})
    assert datamodule.recipe.image_size == 48
    with pytest.raises(ConfigurationError, match="48 x 64, but the generated images are square"):
        SyntheticTextures(root=tmp_path, image_size=(48, 64))
