"""The solar cells: which of them are there, and on which side of the split."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from anomalib_mixedteacher.data import Elpv
from anomalib_mixedteacher.errors import ConfigurationError, DataError

# cells by type and probability of a defect
CELLS = {("mono", 0.0): 8, ("mono", 1.0): 5, ("mono", 1 / 3): 2, ("poly", 0.0): 6, ("poly", 1.0): 3, ("poly", 2 / 3): 2}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package with the real one's layout in its place."""
    folder = tmp_path / "elpv_dataset"
    (folder / "data" / "images").mkdir(parents=True)
    (folder / "__init__.py").touch()
    lines = []
    for (kind, probability), count in CELLS.items():
        for _ in range(count):
            name = f"images/cell{len(lines) + 1:04}.png"
            Image.new("L", (40, 40), len(lines)).save(folder / "data" / name)
            lines.append(f"{name}  {probability:<20} {kind}\n")
    (folder / "data" / "labels.csv").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def counts(dataset) -> dict:
    return dataset.samples.groupby(["type", "label"]).size().to_dict()


def test_half_of_the_good_cells_train_and_all_defective_ones_are_tested(package):
    datamodule = Elpv(val_split_mode="none")
    datamodule.setup()
    assert counts(datamodule.train_data) == {("mono", "good"): 4, ("poly", "good"): 3}
    assert counts(datamodule.test_data) == {
        ("mono", "good"): 4,
        ("mono", "defective"): 5,
        ("poly", "good"): 3,
        ("poly", "defective"): 3,
    }
    paths = [*datamodule.train_data.samples.image_path, *datamodule.test_data.samples.image_path]
    assert len(set(paths)) == len(paths) == 22
    assert all((row.label == "good") == (row.label_index == 0) for row in datamodule.test_data.samples.itertuples())
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.image.shape == (8, 3, 40, 40)
    assert batch.gt_mask is None


def test_a_category_is_split_as_in_the_whole(package):
    def trained(category, seed):
        datamodule = Elpv(category=category, seed=seed)
        datamodule.setup()
        assert set(datamodule.val_data.samples.label) == {"good", "defective"}
        return set(datamodule.train_data.samples.image_path)

    for seed in (0, 1):
        assert trained("mono", seed) | trained("poly", seed) == trained("all", seed)
    assert trained("all", 0) != trained("all", 1)


def test_the_ratio_is_the_tested_share(package):
    datamodule = Elpv(category="mono", test_split_ratio=0.25, val_split_mode="none")
    datamodule.setup()
    assert counts(datamodule.train_data) == {("mono", "good"): 6}


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"category": "glass"}, "category is 'glass': choose one of all, mono, poly"), ({"test_split_ratio": 1}, "is 1")],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises(ConfigurationError, match=message):
        Elpv(**argument)


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(__import__("sys").modules, "elpv_dataset", raising=False)
    with pytest.raises(DataError, match="not installed: pip install elpv-dataset"):
        Elpv().setup()


def test_anomalib_knows_it_by_its_name(package):
    from anomalib.data import get_datamodule

    datamodule = get_datamodule({"class_path": "Elpv", "init_args": {"category": "poly"}})
    datamodule.setup()
    assert (datamodule.name, datamodule.category, len(datamodule.train_data)) == ("Elpv", "poly", 3)


@pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="not installed: pip install elpv-dataset")
def test_the_real_package_has_the_published_cells():
    datamodule = Elpv(val_split_mode="none")
    datamodule.setup()
    assert len(datamodule.train_data) == 754
    assert datamodule.test_data.samples.label.value_counts().to_dict() == {"good": 754, "defective": 715}
    assert datamodule.test_data[0].image.shape == (3, 300, 300)
