"""The generated data set: layout, cache, determinism, and each mistake a user can make."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_mixedteacher.data import SyntheticTextures, synthetic_textures
from anomalib_mixedteacher.data.defects import DEFECTS
from anomalib_mixedteacher.data.textures import FAMILIES
from anomalib_mixedteacher.errors import ConfigurationError, DataError

SMALL = {"image_size": 48, "num_train": 3, "num_test_good": 2, "num_defects_per_kind": 2}


def make(root: Path, **overrides) -> SyntheticTextures:
    return SyntheticTextures(root=root, **{**SMALL, **overrides})


def digests(root: Path, **overrides) -> dict[str, str]:
    """Generate, and hash each file by its path inside the category."""
    make(root, **overrides).prepare_data()
    files = [path for path in root.rglob("*") if path.is_file()]
    return {"/".join(path.parts[-3:]): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("category", FAMILIES)
def test_categories_have_every_defect_with_its_mask(tmp_path, category):
    datamodule = make(tmp_path, category=category, val_split_mode="same_as_test")
    datamodule.setup()
    assert datamodule.category == category
    assert datamodule.train_data.samples.label.tolist() == ["good"] * 3
    assert datamodule.test_data.samples.label.value_counts().to_dict() == {"good": 2, **dict.fromkeys(DEFECTS, 2)}
    for item in datamodule.test_data:
        assert item.image.shape == (3, 48, 48)
        assert item.gt_mask.shape == (48, 48)
        assert bool(item.gt_mask.any()) == bool(item.gt_label)
        assert bool(item.gt_label) == ("/good/" not in Path(item.image_path).as_posix())


def test_files_on_disk_hold_the_rendered_pixels(tmp_path):
    samples = make(tmp_path).make_samples()
    image, mask = synthetic_textures.render("weave", 48, 0, "test", "scratch", 1)
    row = samples[samples.image_path.str.endswith("test/scratch/001.png")].iloc[0]
    np.testing.assert_array_equal(np.asarray(Image.open(row.image_path)), np.round(image * 255))
    np.testing.assert_array_equal(np.asarray(Image.open(row.mask_path)), mask * 255)


def test_arguments_decide_the_bytes(tmp_path):
    first = digests(tmp_path / "a")
    assert len(first) == 3 + 2 + 6 * 2 * 2
    assert first == digests(tmp_path / "b")
    other = digests(tmp_path / "c", seed=1)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first if name.startswith("train"))
    more = digests(tmp_path / "d", num_train=5, num_test_good=3, num_defects_per_kind=3)
    assert first.items() < more.items()


def test_a_second_datamodule_does_not_write_again(tmp_path, monkeypatch):
    make(tmp_path).prepare_data()
    monkeypatch.setattr(synthetic_textures, "render", lambda *_: pytest.fail("generated again"))
    datamodule = make(tmp_path)
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.train_data) == 3


def test_validation_takes_half_of_the_test_by_default(tmp_path):
    datamodule = make(tmp_path)
    datamodule.setup()
    validation, test = set(datamodule.val_data.samples.image_path), set(datamodule.test_data.samples.image_path)
    assert len(validation) == len(test) == 7
    assert not validation & test
    assert datamodule.val_data.has_normal
    assert datamodule.val_data.has_anomalous
    assert sum(len(batch.image) for batch in datamodule.test_dataloader()) == 7


def test_the_environment_names_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALIB_MIXEDTEACHER_CACHE", str(tmp_path))
    SyntheticTextures(**SMALL).prepare_data()
    assert list(tmp_path.glob("synthetic_textures/v*/weave/train/good/002.png"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"category": "denim"}, "category is 'denim': choose one of weave, grain, grid, cells, speckle"),
        ({"image_size": 31}, "image_size is 31: set it to 32 or more"),
        ({"image_size": (48, 64)}, "48 x 64, but the generated images are square"),
        ({"num_train": 0}, "num_train is 0: set it to 1 or more"),
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


def test_lost_file_is_named(tmp_path):
    datamodule = make(tmp_path)
    datamodule.prepare_data()
    next(tmp_path.rglob("ground_truth/hole/001_mask.png")).unlink()
    with pytest.raises(DataError, match="001_mask.png: delete the folder"):
        datamodule.setup()


def test_anomalibs_factory_knows_it(tmp_path):
    from anomalib.data import get_datamodule

    arguments = {"root": str(tmp_path), "image_size": 48, "num_train": 2, "val_split_mode": "none"}
    datamodule = get_datamodule({"class_path": "SyntheticTextures", "init_args": arguments})
    datamodule.setup()
    (batch,) = datamodule.train_dataloader()
    assert batch.image.shape == (2, 3, 48, 48)
