"""The magnetic-tile data set: no tile on two sides of a split, whatever the seed and the mode."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_mixedteacher.data import MagneticTile, MagneticTileDataset
from anomalib_mixedteacher.data._tiles import find_tiles, group_ids, merge_repeats
from anomalib_mixedteacher.errors import ConfigurationError, DataError

REAL = Path(__file__).parents[4] / "shared" / "data" / "magnetic_tile"

# An id in each of two series of the published data that show one tile; all are good shots.
REPEATS = [(5874, 13526), (306609, 309390), (337646, 349824), (355636, 358102)]

# First id of each tile, and the kinds of its six shots.
TILES = {
    **{1000 * tile: ["Free"] * 6 for tile in range(1, 9)},
    20000: ["Crack"] * 6,
    30000: ["Crack"] * 6,
    40000: ["Blowhole"] * 4 + ["Free"] * 2,
    50000: ["Blowhole"] * 6,
    60000: ["Uneven"] * 6,
}


def add_shot(root: Path, kind: str, shot: int, exposure: int = 1) -> Path:
    folder = root / f"MT_{kind}" / "Imgs"
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"exp{exposure}_num_{shot}.jpg"
    Image.new("L", (40, 36), shot % 200).save(image)
    mask = np.zeros((36, 40), np.uint8)
    if kind != "Free":
        # The published masks have smoothed edges: 100 is outside, 200 inside.
        mask[5:10, 5:10], mask[4, 5:10], mask[10, 5:10] = 255, 100, 200
    Image.fromarray(mask).save(image.with_suffix(".png"))
    return image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for first, kinds in TILES.items():
        for exposure, kind in enumerate(kinds, 1):
            add_shot(tmp_path, kind, first + 30 * exposure, exposure)
    return tmp_path


def shot_id(path: str) -> int:
    return int(Path(path).stem.rsplit("_", 1)[1])


def groups_by_gap(root: Path) -> dict[int, int]:
    """Group ids by the rule of the data's description, on its own."""
    group, groups, previous = 0, {}, None
    for shot in sorted(shot_id(str(path)) for path in root.glob("MT_*/Imgs/*.jpg")):
        group += previous is not None and shot - previous > 250
        groups[shot] = group
        previous = shot
    return groups


def sides(datamodule: MagneticTile, groups: dict[int, int]) -> list[set[int]]:
    parts = (datamodule.train_data, datamodule.val_data, datamodule.test_data)
    return [{groups[shot_id(path)] for path in part.samples.image_path} for part in parts]


def labels(dataset) -> Counter:
    return Counter(dataset.samples.label)


@pytest.mark.parametrize("mode", ["from_test", "from_train"])
@pytest.mark.parametrize("seed", range(6))
def test_no_tile_is_on_two_sides(root, mode, seed):
    datamodule = MagneticTile(root=root, seed=seed, val_split_mode=mode)
    datamodule.setup()
    train, val, test = sides(datamodule, groups_by_gap(root))
    assert train
    assert val
    assert test
    assert not train & val
    assert not train & test
    assert not val & test
    assert set(datamodule.train_data.samples.label) == {"good"}
    shots = [len(part) for part in (datamodule.train_data, datamodule.val_data, datamodule.test_data)]
    assert sum(shots) == 6 * len(TILES)


def test_good_shots_of_a_tile_with_a_defect_are_tested(root):
    for seed in range(6):
        train = MagneticTileDataset(root=root, seed=seed, split="train").samples
        assert not {shot for shot in map(shot_id, train.image_path) if 40000 <= shot < 41000}


def test_default_split_is_stratified(root):
    datamodule = MagneticTile(root=root)
    datamodule.setup()
    # 8 good tiles: 40 % round to 3 tested, of which one or two validate; two tiles of cracks and of blowholes.
    assert labels(datamodule.train_data) == {"good": 30}
    val, test = labels(datamodule.val_data), labels(datamodule.test_data)
    assert val["crack"] == test["crack"] == 6
    assert {val["blowhole"], test["blowhole"]} == {4, 6}
    assert val["good"] >= 6
    assert test["good"] >= 6
    # A kind with one tile cannot be on both sides: it is tested.
    assert (val["uneven"], test["uneven"]) == (0, 6)


def test_split_follows_the_seed_alone(root, monkeypatch):
    def paths(seed):
        datamodule = MagneticTile(root=root, seed=seed)
        datamodule.setup()
        return [list(part.samples.image_path) for part in (datamodule.train_data, datamodule.val_data)]

    first = paths(0)
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterdir(self), reverse=True))
    assert paths(0) == first
    assert any(paths(seed) != first for seed in range(1, 5))


def test_test_split_ratio_sets_the_share_of_good_tiles(root):
    assert len(MagneticTileDataset(root=root, split="train", test_split_ratio=0.25)) == 36
    assert len(MagneticTileDataset(root=root, split="train", test_split_ratio=0.75)) == 12
    # Never so high that nothing trains, nor so low that no good tile is tested.
    assert len(MagneticTileDataset(root=root, split="train", test_split_ratio=0.99)) == 6
    assert len(MagneticTileDataset(root=root, split="train", test_split_ratio=0.01)) == 42


def test_defects_restrict_the_test_and_leave_training_alone(root):
    everything = MagneticTileDataset(root=root, split="train").samples
    cracks = MagneticTile(root=root, defects=["Crack"])
    cracks.setup()
    assert list(cracks.train_data.samples.image_path) == list(everything.image_path)
    assert set(labels(cracks.test_data)) == set(labels(cracks.val_data)) == {"good", "crack"}


def test_other_validation_modes(root):
    same = MagneticTile(root=root, val_split_mode="same_as_test")
    same.setup()
    assert list(same.val_data.samples.image_path) == list(same.test_data.samples.image_path)

    none = MagneticTile(root=root, val_split_mode="none")
    none.setup()
    assert not hasattr(none, "val_data")

    synthetic = MagneticTile(root=root, val_split_mode="synthetic")
    synthetic.setup()
    groups = groups_by_gap(root)
    source = {groups[shot_id(path)] for path in synthetic.val_data.source_samples.image_path}
    assert not source & {groups[shot_id(path)] for path in synthetic.train_data.samples.image_path}
    assert synthetic.val_data.has_anomalous


def test_items_have_rgb_images_and_masks_cut_at_half_scale(root):
    dataset = MagneticTileDataset(root=root, split="test")
    for item in dataset:
        assert item.image.shape == (3, 36, 40)
        assert item.gt_mask.shape == (36, 40)
        assert int(item.gt_mask.sum()) == (30 if item.gt_label else 0)
    assert bool((item.image[0] == item.image[2]).all())
    batch = dataset.collate_fn([dataset[0], dataset[len(dataset) - 1]])
    assert batch.image.shape == (2, 3, 36, 40)


def test_letter_case_of_folders_does_not_matter(root):
    expected = len(MagneticTileDataset(root=root))
    (root / "MT_Crack" / "Imgs").rename(root / "MT_Crack" / "imgs")
    (root / "MT_Free").rename(root / "mt_free")
    assert len(MagneticTileDataset(root=root)) == expected


def test_incomplete_runs_join_over_a_wider_gap():
    complete = [0, 10, 20, 30, 40, 50]
    assert group_ids([*complete, 250, 300]) == [0] * 8
    assert group_ids([*complete, *(400 + shot for shot in complete)]) == [0] * 6 + [1] * 6
    # Three shots of a tile, and the other three 280 later.
    assert group_ids([0, 10, 20, 300, 310, 320]) == [0] * 6
    assert group_ids([0, 10, 20, 1100, 1110, 1120]) == [0] * 3 + [1] * 3
    assert group_ids([]) == []


def test_series_that_show_one_tile_are_one_group():
    for first, second in REPEATS:
        ids = [10, first, first + 20, 200_000, second, second + 20, 400_000]
        ids.sort()
        groups = merge_repeats(ids, group_ids(ids))
        number = dict(zip(ids, groups, strict=True))
        assert number[first] == number[first + 20] == number[second] == number[second + 20]
        assert sorted(set(groups)) == [0, 1, 2, 3]
        # a copy without the second series, and one without either
        for partial in ([10, first, first + 20], [10, 400_000]):
            assert merge_repeats(partial, group_ids(partial)) == group_ids(partial)
    pairs = sorted(shot for pair in REPEATS for shot in pair)
    numbers = dict(zip(pairs, merge_repeats(pairs, group_ids(pairs)), strict=True))
    assert len(set(numbers.values())) == 4
    assert all(numbers[first] == numbers[second] for first, second in REPEATS)


@pytest.mark.parametrize("mode", ["from_test", "from_train"])
def test_a_repeated_series_is_on_the_side_of_the_first(tmp_path, mode):
    for first in [*range(1000, 5000, 1000), *(shot for pair in REPEATS for shot in pair)]:
        add_shot(tmp_path, "Free", first)
    for first in (20000, 30000):
        add_shot(tmp_path, "Crack", first)
    for seed in range(6):
        datamodule = MagneticTile(root=tmp_path, seed=seed, val_split_mode=mode)
        datamodule.setup()
        parts = (datamodule.train_data, datamodule.val_data, datamodule.test_data)
        shots = [set(map(shot_id, part.samples.image_path)) for part in parts]
        assert all((first in part) == (second in part) for part in shots for first, second in REPEATS)


def test_one_training_image_is_enough(tmp_path):
    add_shot(tmp_path, "Free", 1000)
    for shot in (9000, 20000):
        add_shot(tmp_path, "Crack", shot)
    datamodule = MagneticTile(root=tmp_path)
    datamodule.setup()
    (batch,) = list(datamodule.train_dataloader())
    assert batch.image.shape == (1, 3, 36, 40)
    assert labels(datamodule.val_data) == labels(datamodule.test_data) == {"crack": 1}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"defects": ["rust"]}, "Unknown kind of defect 'rust': choose from blowhole, break, crack, fray, uneven"),
        ({"defects": []}, "defects is empty"),
        ({"test_split_ratio": 0}, "test_split_ratio is 0"),
        ({"test_split_ratio": 1.0}, "test_split_ratio is 1.0"),
        ({"val_split_ratio": 2.0}, "val_split_ratio is 2.0"),
        ({"val_split_mode": "from_dir"}, "no validation folder"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments_are_named(root, argument, message):
    with pytest.raises(ConfigurationError, match=message):
        MagneticTile(root=root, **argument)


def test_missing_data_say_where_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"absent does not exist.*abin24/Magnetic-tile-defect-datasets.*2020.*root="):
        MagneticTile(root=tmp_path / "absent").setup()
    with pytest.raises(DataError, match=r"Imgs of MT_Free below .*root="):
        MagneticTile(root=tmp_path).setup()
    add_shot(tmp_path, "Free", 1000)
    with pytest.raises(DataError, match=r"Imgs of MT_Blowhole, .* below .*root="):
        MagneticTile(root=tmp_path).setup()


def test_missing_mask_kind_and_id_are_named(root):
    with pytest.raises(DataError, match="No images of fray below"):
        MagneticTile(root=root, defects=["fray"]).setup()
    mask = next((root / "MT_Crack" / "Imgs").glob("*.png"))
    content = mask.read_bytes()
    mask.unlink()
    with pytest.raises(DataError, match=f"no mask {mask.name}"):
        MagneticTileDataset(root=root)
    mask.write_bytes(content)
    (root / "MT_Free" / "Imgs" / "photo.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="photo.jpg is not named"):
        MagneticTileDataset(root=root)


def test_too_few_tiles_for_a_mode_are_reported(tmp_path):
    add_shot(tmp_path, "Free", 1000)
    add_shot(tmp_path, "Crack", 9000)
    with pytest.raises(DataError, match="'from_test' needs images of a second tile"):
        MagneticTile(root=tmp_path).setup()
    with pytest.raises(DataError, match="'from_train' needs images of a second tile"):
        MagneticTile(root=tmp_path, val_split_mode="from_train").setup()
    with pytest.raises(DataError, match="No group of good images is left for the test"):
        MagneticTile(root=tmp_path, test_split_mode="synthetic", val_split_mode="none").setup()
    add_shot(tmp_path, "Crack", 1010)
    with pytest.raises(DataError, match="nothing is left to train on"):
        MagneticTile(root=tmp_path).setup()


def test_undecodable_image_is_named(root):
    dataset = MagneticTileDataset(root=root, split="train")
    path = Path(dataset.samples.iloc[0].image_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"Cannot read the image .*{path.name}.*replace the file or remove it"):
        dataset[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the magnetic-tile data set is not beside the repository")
def test_real_data_are_split_without_leaks():
    groups = groups_by_gap(REAL)
    for seed in range(3):
        datamodule = MagneticTile(root=REAL, seed=seed)
        datamodule.setup()
        train, val, test = sides(datamodule, groups)
        assert not train & (val | test)
        assert not val & test
        total = labels(datamodule.train_data) + labels(datamodule.val_data) + labels(datamodule.test_data)
        assert total == {"good": 707, "blowhole": 90, "break": 56, "crack": 42, "fray": 24, "uneven": 84}
        # Good tiles without a defect make up most of the 707; six in ten of them train.
        assert 330 <= len(datamodule.train_data) <= 425
        assert set(labels(datamodule.val_data)) == set(labels(datamodule.test_data)) == set(total)
    item = datamodule.test_data[0]
    assert item.image.shape[0] == 3
    assert set(torch.unique(item.gt_mask).tolist()) <= {0, 1}


@pytest.mark.skipif(not REAL.is_dir(), reason="the magnetic-tile data set is not beside the repository")
@pytest.mark.parametrize("mode", ["from_test", "from_train"])
def test_real_tiles_that_were_photographed_twice_are_on_one_side(mode):
    tiles = find_tiles(REAL)
    group = dict(zip(map(shot_id, tiles.image_path), tiles.group, strict=True))
    assert all(group[first] == group[second] for first, second in REPEATS)
    assert sorted(set(tiles.group)) == list(range(130))
    assert set(tiles.label[tiles.group.isin([group[first] for first, _ in REPEATS])]) == {"good"}
    for seed in range(4):
        datamodule = MagneticTile(root=REAL, seed=seed, val_split_mode=mode)
        datamodule.setup()
        train, val, test = sides(datamodule, group)
        assert not train & val
        assert not train & test
        assert not val & test
