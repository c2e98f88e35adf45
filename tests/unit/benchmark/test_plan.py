"""Plans: what is compared, defaults of models, categories, and one sentence for each mistake."""

from pathlib import Path

import pytest
import yaml
from anomalib.data.datasets.image.folder import FolderDataset
from anomalib.data.errors import MisMatchError
from anomalib_mixedteacher.benchmark.build import build, build_data

from anomalib_mixedteacher.benchmark import command, runner
from anomalib_mixedteacher.benchmark.plan import parse_plan, read_plan
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError, DataError, MixedTeacherError, sentence

PLAN = """
models:
  - MixedTeacher
  - class_path: anomalib.models.Patchcore
    init_args: {coreset_sampling_ratio: 0.1}
    name: Patchcore 10 %
  - {class_path: EfficientAd, image_size: 256, epochs: 3}
data:
  - class_path: SyntheticTextures
    init_args: {num_train: 8}
    categories: [weave, grain]
  - {class_path: Folder, init_args: {root: parts, normal_dir: good, name: parts}}
seeds: [0, 7]
teacher_weights: random
image_size: 64
epochs: 5
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    return read_plan(tmp_path / "plan.yaml")


def test_cells_are_all_combinations_with_each_models_usual_values(plan):
    cells = plan.cells()
    assert len(cells) == 3 * 3 * 2
    assert [cell.model for cell in cells[:3]] == ["MixedTeacher", "Patchcore 10 %", "EfficientAd"]
    assert list(dict.fromkeys(cell.data for cell in cells)) == [
        "SyntheticTextures/weave",
        "SyntheticTextures/grain",
        "parts",
    ]
    assert [(c.epochs, c.batch, c.image_size) for c in cells[:3]] == [(5, 8, 64), (1, 32, 64), (3, 1, 256)]
    assert [cell.seed for cell in cells] == [0] * 9 + [7] * 9
    assert cells[3].data_args == {"num_train": 8, "category": "grain"}
    assert cells[6].data_args == {"root": "parts", "normal_dir": "good", "name": "parts"}


def test_what_is_written_is_read_again(plan):
    assert parse_plan(yaml.safe_load(plan.to_yaml()), "a file").cells() == plan.cells()


def test_another_configuration_has_another_key(plan):
    cells = plan.cells()
    names = {cell.name for cell in cells}
    assert len(names) == len(cells)
    longer = parse_plan(yaml.safe_load(plan.to_yaml()) | {"epochs": 6}, "a file").cells()
    changed = [old.name != new.name for old, new in zip(cells, longer, strict=True)]
    assert changed == [True, False, False] * 6  # the others do not take the plan's epochs
    assert [cell.name for cell in read_again(plan).cells()] == [cell.name for cell in cells]


def read_again(plan):
    return parse_plan(yaml.safe_load(plan.to_yaml()), "a file")


def test_all_categories_of_a_folder_are_its_subfolders_with_good_images(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name / "good").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    entry = {"class_path": "Folder", "init_args": {"root": str(tmp_path), "normal_dir": "good"}, "categories": "all"}
    cells = parse_plan({"models": ["Stfpm"], "data": [{**entry, "name": "fabric"}]}, "a file").cells()
    assert [cell.data for cell in cells] == ["fabric/a", "fabric/b"]
    assert [cell.data_args["root"] for cell in cells] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_data_sets_of_one_class_are_told_apart_by_their_names():
    data = [{"class_path": "Folder", "init_args": {"root": name}, "name": name} for name in ("fabric", "leather")]
    cells = parse_plan({"models": ["Stfpm"], "data": data}, "a file").cells()
    assert [(cell.data, cell.data_args["root"]) for cell in cells] == [("fabric", "fabric"), ("leather", "leather")]


def test_a_category_that_lacks_defects_takes_them_from_no_other(tmp_path):
    for path in ("a/good", "a/bad", "a/more", "a/mask", "b/good", "b/more", "c/good"):
        (tmp_path / path).mkdir(parents=True)
    arguments = {"root": str(tmp_path), "normal_dir": "good", "abnormal_dir": ["bad", "more"], "mask_dir": "mask"}
    entry = {"class_path": "Folder", "init_args": arguments, "categories": "all"}
    cells = parse_plan({"models": ["Stfpm"], "data": [entry]}, "a file").cells()
    assert [cell.data_args.get("abnormal_dir") for cell in cells] == [["bad", "more"], ["bad", "more"], None]
    assert [cell.data_args.get("mask_dir") for cell in cells] == ["mask", None, None]
    listed = parse_plan({"models": ["Stfpm"], "data": [{**entry, "categories": ["c"]}]}, "a file").cells()
    assert listed[0].data_args["mask_dir"] == "mask"  # asked for by name: that it is not there is an error


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modles": ["Stfpm"]}, "has no modles: it takes models, data, seeds"),
        ({"models": []}, "has no models: give at least one"),
        ({"models": "Stfpm"}, "needs models as a list"),
        ({"models": ["Stfpm", {"class_path": "anomalib.models.Stfpm"}]}, "Several models are called Stfpm"),
        ({"data": ["Folder", "Folder"]}, "Several data sets are called Folder: give each a name of its own"),
        (
            {"data": [{"class_path": "SyntheticTextures", "categories": ["grid", "weave", "grid"]}]},
            "Several data sets are called SyntheticTextures/grid: .* and each category once",
        ),
        ({"seeds": [0, 1, 0]}, "The seeds name 0 more than once: give each seed once"),
        ({"models": [{"init_args": {}}]}, "no class_path: name the class"),
        ({"models": [{"class_path": "Stfpm", "epoch": 3}]}, "has no epoch: it takes class_path, init_args"),
        ({"seeds": []}, "has no seeds"),
        ({"epochs": 0}, "epochs is 0: give a whole number"),
        ({"image_size": "big"}, "image_size is 'big'"),
        ({"alarm_rate": 5}, "An alarm rate of 5 makes no sense"),
        ({"data": [{"class_path": "MVTecAD", "categories": "all"}]}, "categories of MVTecAD: give a list"),
        ({"data": [{"class_path": "MVTecAD", "categories": []}]}, "categories of MVTecAD: give a list"),
        ({"data": [{"class_path": "MVTecAD", "categories": 3}]}, "categories of MVTecAD: give a list"),
        ({"models": [{"class_path": "Stfpm", "epochs": 0}]}, "Stfpm: epochs is 0: give a whole number from 1 on"),
        ({"models": [{"class_path": "Stfpm", "image_size": 0}]}, "Stfpm: image_size is 0: give a whole number"),
        ({"models": [{"class_path": "Stfpm", "batch": 0}]}, "Stfpm: batch is 0: give a whole number"),
        ({"models": [{"class_path": "Stfpm", "batch": "8"}]}, "Stfpm: batch is '8': give a whole number"),
        ({"models": [{"class_path": "Stfpm", "init_args": [1]}]}, "Stfpm: init_args is .1.: give keys and values"),
        ({"models": [{"class_path": 3}]}, "class_path is 3: name the class"),
        ({"models": [3]}, "models is not made of keys and values"),
        ({"epochs": True}, "epochs is True: give a whole number"),
        ({"alarm_rate": "a lot"}, "alarm_rate is 'a lot': give a share above 0 and below 1"),
        ({"alarm_rate": None}, "alarm_rate is None: give a share above 0 and below 1"),
        ({"seeds": ["a"]}, "The seeds hold 'a': give whole numbers from 0 to 4294967295"),
        ({"seeds": [1.5]}, "The seeds hold 1.5: give whole numbers"),
        ({"seeds": [-1]}, "The seeds hold -1: give whole numbers"),
        ({"teacher_weights": None}, "teacher_weights is None: name a source"),
    ],
)
def test_mistakes_are_one_sentence(change, sentence):
    values = {"models": ["Stfpm"], "data": ["SyntheticTextures"]} | change
    with pytest.raises(MixedTeacherError, match=sentence) as raised:
        parse_plan(values, "plan.yaml").cells()
    assert "\n" not in str(raised.value)


def test_numbers_that_yaml_takes_for_text_and_empty_arguments_are_understood():
    text = """
models: [{class_path: Stfpm, init_args: }]
data: [{class_path: SyntheticTextures, init_args: , categories: }]
alarm_rate: 5e-2
"""
    (cell,) = parse_plan(yaml.safe_load(text), "plan.yaml").cells()
    assert (cell.alarm_rate, cell.init_args, cell.data_args) == (0.05, {}, {})


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: build_data("Folder", {"root": "x"}, 0, 8), "Folder needs name, normal_dir: write a .* --folder"),
        (lambda: build_data("MVTecAD", {"val_split_mode": "none at all"}, 0, 8), "MVTecAD cannot take its arguments"),
        (lambda: build_data("SyntheticTextures", {"seed": []}, 0, 8), "SyntheticTextures cannot take its arguments"),
        (lambda: build("Msfd", "random", 64, nonsense=3), "Msfd cannot take its arguments .*'nonsense'"),
        (lambda: build("Stfpm", "random", 64, nonsense=3), "Stfpm cannot take its arguments .*'nonsense'"),
    ],
)
def test_arguments_that_a_constructor_does_not_take_are_one_sentence(build, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        build()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("bad", "masks"), [(4, 3), (3, 4), (4, 1)])
def test_masks_that_are_too_few_or_too_many_for_anomalib_are_one_sentence(tmp_path, bad, masks):
    for kind, count in {"good": 3, "bad": bad, "mask": masks}.items():
        (tmp_path / kind).mkdir()
        for index in range(count):
            (tmp_path / kind / f"{index}.png").touch()
    with pytest.raises((ValueError, MisMatchError)) as raised:
        FolderDataset("parts", "good", root=tmp_path, abnormal_dir="bad", mask_dir="mask")
    said = sentence(raised.value)
    assert said is not None
    assert said.startswith("The defective images and their masks do not match")
    assert "leave mask_dir out" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="give the YAML file of a benchmark"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("models: [")
    with pytest.raises(ConfigurationError, match="is no YAML file"):
        read_plan(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigurationError, match="is not made of keys and values"):
        read_plan(tmp_path / "list.yaml")


class TestCommandLine:
    """The short form."""

    def plan(self, monkeypatch, *arguments):
        found = []
        monkeypatch.setattr(command, "run", lambda plan, folder, jobs: found.append((plan, folder, jobs)) or 0)
        assert command.main([*arguments, "--output", "run"]) == 0
        return found[0]

    def test_names_make_a_plan(self, monkeypatch):
        models = ["--models", 'MixedTeacher:fusion="sum",sigma=2', "Stfpm"]
        data = ["--data", "SyntheticTextures/grain", "MagneticTile", "--root", "tiles"]
        numbers = ["--epochs", "3", "--seeds", "1", "2", "--jobs", "2"]
        plan, folder, jobs = self.plan(monkeypatch, *models, *data, *numbers)
        cells = plan.cells()
        assert [cell.model for cell in cells[:2]] == ['MixedTeacher fusion="sum", sigma=2', "Stfpm"]
        assert cells[0].init_args == {"fusion": "sum", "sigma": 2}
        assert cells[0].data_args == {"category": "grain"}
        assert (cells[2].data, cells[2].data_args) == ("MagneticTile", {"root": "tiles"})
        assert (len(cells), cells[0].epochs, str(folder.path), jobs) == (8, 3, "run", 2)

    def test_a_folder_of_images_is_a_data_set(self, monkeypatch, image_folder):
        plan, _, _ = self.plan(monkeypatch, "--folder", str(image_folder))
        (data,) = {cell.data for cell in plan.cells()}
        assert data == image_folder.name
        arguments = plan.cells()[0].data_args
        assert (arguments["normal_dir"], arguments["abnormal_dir"], arguments["mask_dir"]) == ("good", "bad", "mask")

    def test_a_folder_of_categories_is_a_data_set_each(self, monkeypatch, tmp_path):
        for path in ("a/good", "a/bad", "a/mask", "b/good", "c/other"):
            (tmp_path / path).mkdir(parents=True)
        plan, _, _ = self.plan(monkeypatch, "--folder", str(tmp_path), "--models", "Msfd")
        whole, bare = plan.cells()
        assert [whole.data, bare.data] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]
        assert (whole.data_args["abnormal_dir"], whole.data_args["mask_dir"]) == ("bad", "mask")
        assert not {"abnormal_dir", "mask_dir"} & bare.data_args.keys()

    def test_numbers_on_the_command_line_go_before_the_files(self, monkeypatch, tmp_path):
        (tmp_path / "plan.yaml").write_text(PLAN)
        plan, _, _ = self.plan(monkeypatch, str(tmp_path / "plan.yaml"), "--epochs", "9", "--alarm-rate", "0.2")
        assert (plan.epochs, plan.alarm_rate, plan.image_size) == (9, 0.2, 64)

    def test_a_root_goes_before_the_files(self, monkeypatch, tmp_path):
        path = tmp_path / "plan.yaml"
        path.write_text(
            "models: [Stfpm]\n"
            "data:\n"
            "  - {class_path: MagneticTile, init_args: {root: elsewhere, test_split_ratio: 0.5}}\n"
            "  - {class_path: SyntheticTextures, init_args: {root: cache, seed: 3}, categories: [weave]}\n"
            "  - {class_path: SyntheticTextures, categories: [grid]}\n"
        )
        plan, _, _ = self.plan(monkeypatch, str(path), "--root", "tiles")
        assert [cell.data_args for cell in plan.cells()] == [
            {"root": "tiles", "test_split_ratio": 0.5},
            {"root": "cache", "seed": 3, "category": "weave"},
            {"category": "grid"},
        ]

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            ("[SyntheticTextures]", "have no root among their init_args: leave --root out, or change the file"),
            (
                "[{class_path: MVTecAD, init_args: {root: a}}, {class_path: BTech, init_args: {root: b}}]",
                "have several folders: leave --root out, or change the file",
            ),
        ],
    )
    def test_a_root_that_cannot_be_meant_is_refused(self, tmp_path, data, sentence):
        path = tmp_path / "plan.yaml"
        path.write_text(f"models: [Stfpm]\ndata: {data}\n")
        with pytest.raises(ConfigurationError, match=sentence):
            command.main([str(path), "--root", "tiles", "--output", str(tmp_path / "run")])

    @pytest.mark.parametrize("name", ["line", "presets", "texture_teachers"])
    def test_absent_tiles_are_told_before_the_first_training(self, monkeypatch, tmp_path, name):
        monkeypatch.setattr(runner, "run_cells", lambda *_: pytest.fail("trained"))
        path = Path(__file__).parents[3] / "configs" / "benchmark" / f"{name}.yaml"
        arguments = [str(path), "--root", str(tmp_path / "tiles"), "--output", str(tmp_path / "run")]
        with pytest.raises(
            DataError, match=r"tiles does not exist: get the data set from .*root= \(--root of a benchmark\)"
        ):
            command.main(arguments)
        assert not (tmp_path / "run").exists()
        # what is finished needs them no more
        monkeypatch.setattr(runner, "run_cells", lambda *_: None)
        monkeypatch.setattr(RunFolder, "is_finished", lambda *_: True)
        assert command.main(arguments) == 0

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ([], "Give a benchmark's YAML file, or --data, or --folder"),
            (["plan.yaml", "--data", "Folder"], "names models and data: leave --data out"),
            (["--folder", "none"], "There is no folder none"),
            (["--data", "SyntheticTextures", "--jobs", "0"], "--jobs is 0"),
            (["--data", "SyntheticTextures", "--models", "Stfpm:layers"], "layers"),
        ],
    )
    def test_mistakes_are_one_sentence(self, arguments, sentence):
        with pytest.raises(ConfigurationError, match=sentence):
            command.main([*arguments, "--output", "run"])

    @pytest.mark.parametrize(
        ("images", "masks", "sentence"),
        [
            (["0", "1", "2"], ["0", "2"], r"bad/1\.png has no mask in .*/mask: draw it .* the same name"),
            (["1", "10"], ["10"], r"bad/1\.png has no mask"),
            (["1", "10"], ["10_mask"], r"bad/1\.png has no mask"),
            (["0"], [], r"bad/0\.png has no mask"),
            (["0"], ["0", "7"], r"mask/7\.png is the mask of no image in .*/bad"),
            (["0"], ["0", "0_mask"], r"do not pair one by one"),
        ],
    )
    def test_images_without_masks_are_named_before_training(self, tmp_path, images, masks, sentence):
        self.write(tmp_path, images, masks)
        with pytest.raises(DataError, match=sentence):
            command.main(["--folder", str(tmp_path), "--output", str(tmp_path / "run")])
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("images", "masks"), [(["0", "1"], ["0", "1"]), (["a/0", "b/0"], ["a/0_mask", "b/0_mask"])]
    )
    def test_masks_that_anomalib_pairs_with_images_are_taken(self, monkeypatch, tmp_path, images, masks):
        self.write(tmp_path, images, masks)
        (tmp_path / "bad" / "notes.txt").touch()
        plan, _, _ = self.plan(monkeypatch, "--folder", str(tmp_path))
        assert plan.cells()[0].data_args["mask_dir"] == "mask"

    def write(self, folder, images, masks):
        for place, names in {"good": ["0"], "bad": images, "mask": masks}.items():
            (folder / place).mkdir()
            for name in names:
                path = folder / place / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                path.touch()

    def test_an_empty_folder_is_told_where_good_images_go(self, tmp_path):
        with pytest.raises(ConfigurationError, match="has no folder 'good'"):
            command.main(["--folder", str(tmp_path), "--output", "run"])
