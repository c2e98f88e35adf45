"""The magnetic-tile data set: no tile on two sides of a split, whatever the seed and the mode."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_mixedteacher.data import MagneticTile
from anomalib_mixedteacher.data.magnetic_tile import group_shots, make_magnetic_tile_dataset
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


def add_shot(root: Path, kind: str, shot: int, exposure: int = 1) -> None:
    folder = root / f"MT_{kind}" / "Imgs"
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"exp{exposure}_num_{shot}.jpg"
    Image.new("L", (40, 36), shot % 200).save(image)
    mask = np.zeros((36, 40), np.uint8)
    if kind != "Free":
        mask[5:10, 5:10] = 255
    Image.fromarray(mask).save(image.with_suffix(".png"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for first, kinds in TILES.items():
        for exposure, kind in enumerate(kinds, 1):
            add_shot(tmp_path, kind, first + 30 * exposure, exposure)
    return tmp_path


def ready(root: Path, **arguments) -> MagneticTile:
    datamodule = MagneticTile(root=root, **arguments)
    datamodule.setup()
    return datamodule


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
def test_no_tile_is_on_two_sides(root, mode):
    for seed in range(6):
        datamodule = ready(root, seed=seed, val_split_mode=mode)
        train, val, test = sides(datamodule, groups_by_gap(root))
        assert len(train) + len(val) + len(test) == len(train | val | test) == len(TILES)
        assert min(map(len, (train, val, test))) > 0
        assert set(datamodule.train_data.samples.label) == {"good"}
        # a good shot of a tile with a defect is tested
        assert 40000 not in {shot_id(path) // 1000 * 1000 for path in datamodule.train_data.samples.image_path}


def test_default_split_is_stratified(root):
    datamodule = ready(root)
    # 8 good tiles: 40 % round to 3 tested, of which one or two validate; two tiles of cracks and of blowholes
    assert labels(datamodule.train_data) == {"good": 30}
    val, test = labels(datamodule.val_data), labels(datamodule.test_data)
    assert val["crack"] == test["crack"] == 6
    assert {val["blowhole"], test["blowhole"]} == {4, 6}
    assert min(val["good"], test["good"]) >= 6
    # a kind with one tile cannot be on both sides: it is tested
    assert (val["uneven"], test["uneven"]) == (0, 6)
    assert all(item.gt_mask.sum() == (25 if item.gt_label else 0) for item in datamodule.test_data)


def test_split_follows_the_seed_alone(root, monkeypatch):
    def paths(seed):
        datamodule = ready(root, seed=seed)
        return [list(part.samples.image_path) for part in (datamodule.train_data, datamodule.val_data)]

    first = paths(0)
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: sorted(glob(self, pattern), reverse=True))
    assert paths(0) == first
    assert any(paths(seed) != first for seed in range(1, 5))


@pytest.mark.parametrize(("ratio", "shots"), [(0.25, 36), (0.75, 12), (0.99, 6), (0.01, 42)])
def test_test_split_ratio_sets_the_share_of_good_tiles(root, ratio, shots):
    # never so high that nothing trains, nor so low that no good tile is tested
    assert len(ready(root, test_split_ratio=ratio).train_data) == shots


def test_defects_restrict_the_test_and_leave_training_alone(root):
    cracks = ready(root, defects=["Crack"])
    assert list(cracks.train_data.samples.image_path) == list(ready(root).train_data.samples.image_path)
    assert set(labels(cracks.test_data)) == set(labels(cracks.val_data)) == {"good", "crack"}


def test_painted_defects_are_on_tiles_of_their_own(root):
    datamodule = ready(root, val_split_mode="synthetic")
    groups = groups_by_gap(root)
    source = {groups[shot_id(path)] for path in datamodule.val_data.source_samples.image_path}
    assert not source & {groups[shot_id(path)] for path in datamodule.train_data.samples.image_path}
    assert datamodule.val_data.has_anomalous


def test_letter_case_of_folders_does_not_matter(root):
    expected = len(make_magnetic_tile_dataset(root))
    (root / "MT_Crack" / "Imgs").rename(root / "MT_Crack" / "imgs")
    (root / "MT_Free").rename(root / "mt_free")
    assert len(make_magnetic_tile_dataset(root)) == expected


def test_incomplete_runs_join_over_a_wider_gap():
    complete = [0, 10, 20, 30, 40, 50]
    assert group_shots([*complete, 250, 300]) == [0] * 8
    assert group_shots([*complete, *(400 + shot for shot in complete)]) == [0] * 6 + [1] * 6
    # three shots of a tile, and the other three 280 later
    assert group_shots([0, 10, 20, 300, 310, 320]) == [0] * 6
    assert group_shots([0, 10, 20, 1100, 1110, 1120]) == [0] * 3 + [1] * 3


@pytest.mark.parametrize(("first", "second"), REPEATS)
def test_series_that_show_one_tile_are_one_group(first, second):
    ids = sorted([10, first, first + 20, 200_000, second, second + 20, 400_000])
    number = dict(zip(ids, group_shots(ids), strict=True))
    assert number[first] == number[first + 20] == number[second] == number[second + 20]
    assert sorted(set(number.values())) == [0, 1, 2, 3]
    assert group_shots([10, first, first + 20]) == [0, 1, 1]  # a copy without the second series


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"defects": ["rust"]}, "defects is 'rust': choose one of blowhole, break, crack, fray, uneven"),
        ({"defects": []}, "defects is empty"),
        ({"test_split_ratio": 0}, "test_split_ratio is 0"),
        ({"test_split_ratio": 1.0}, "test_split_ratio is 1.0"),
    ],
)
def test_wrong_arguments_are_named(root, argument, message):
    with pytest.raises(ConfigurationError, match=message):
        MagneticTile(root=root, **argument)


def test_missing_data_say_where_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"absent does not exist.*abin24/Magnetic-tile-defect-datasets.*2020.*root="):
        ready(tmp_path / "absent")
    with pytest.raises(DataError, match=r"Imgs of MT_Free below .*root="):
        ready(tmp_path)
    add_shot(tmp_path, "Free", 1000)
    with pytest.raises(DataError, match=r"Imgs of MT_Blowhole, .* below .*root="):
        ready(tmp_path)


def test_missing_mask_kind_and_id_are_named(root):
    with pytest.raises(DataError, match="No images of fray below"):
        ready(root, defects=["fray"])
    mask = next((root / "MT_Crack" / "Imgs").glob("*.png"))
    mask.rename(root / "mask.png")
    with pytest.raises(DataError, match=f"no mask {mask.name}"):
        ready(root)
    (root / "mask.png").rename(mask)
    (root / "MT_Free" / "Imgs" / "photo.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="photo.jpg is not named"):
        ready(root)


def test_too_few_tiles_for_a_mode_are_reported(tmp_path):
    add_shot(tmp_path, "Free", 1000)
    add_shot(tmp_path, "Crack", 9000)
    for mode in ("from_test", "from_train"):
        with pytest.raises(DataError, match=f"'{mode}' needs images of a second tile"):
            ready(tmp_path, val_split_mode=mode)
    assert len(ready(tmp_path, val_split_mode="none").train_data) == 1
    add_shot(tmp_path, "Crack", 1010)
    with pytest.raises(DataError, match="nothing is left to train on"):
        ready(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the magnetic-tile data set is not beside the repository")
@pytest.mark.parametrize("mode", ["from_test", "from_train"])
def test_real_data_are_split_without_leaks(mode):
    tiles = make_magnetic_tile_dataset(REAL)
    group = dict(zip(map(shot_id, tiles.image_path), tiles.group, strict=True))
    assert all(group[first] == group[second] for first, second in REPEATS)
    assert sorted(set(tiles.group)) == list(range(130))
    for seed in range(3):
        datamodule = ready(REAL, seed=seed, val_split_mode=mode)
        for groups in (group, groups_by_gap(REAL)):
            train, val, test = sides(datamodule, groups)
            assert len(train) + len(val) + len(test) == len(train | val | test)
        total = labels(datamodule.train_data) + labels(datamodule.val_data) + labels(datamodule.test_data)
        assert total == {"good": 707, "blowhole": 90, "break": 56, "crack": 42, "fray": 24, "uneven": 84}
