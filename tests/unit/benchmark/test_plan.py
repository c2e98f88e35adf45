"""What a benchmark compares, and what is said of a plan that it cannot run."""

from pathlib import Path

import pytest
import yaml

from anomalib_mixedteacher.benchmark.command import parse
from anomalib_mixedteacher.errors import ConfigurationError, DataError

CONFIGS = Path(__file__).parents[3] / "configs" / "benchmark"


def plan_of(*arguments, **values):
    """A plan from the command line, or from values as a YAML file has them."""
    if values:
        Path("plan.yaml").write_text(yaml.safe_dump(values))
        arguments = ("plan.yaml", *arguments)
    return parse([*arguments, "--output", "run"])[0]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folders(*paths):
    for path in paths:
        Path(path).mkdir(parents=True)


def test_every_model_meets_every_set_and_seed_with_the_nearest_setting():
    plan = plan_of(
        models=["Stfpm", {"class_path": "Patchcore"}, {"class_path": "Mkd", "image_size": 128, "teacher_weights": "w"}],
        data=["MVTecLOCO", {"class_path": "MVTecAD", "categories": ["tile", "wood"], "image_size": [96, 64]}],
        seeds=[0, 3],
        max_epochs=7,
    )
    cells = plan.cells()
    assert len(cells) == 3 * 3 * 2
    assert {(c.model, c.data): c.image_size for c in cells} == {
        **{(model, "MVTecLOCO"): 256 for model in ("Stfpm", "Patchcore")},
        **{(model, f"MVTecAD/{name}"): (96, 64) for model in ("Stfpm", "Patchcore") for name in ("tile", "wood")},
        **{("Mkd", data): 128 for data in ("MVTecLOCO", "MVTecAD/tile", "MVTecAD/wood")},
    }
    assert {c.model: (c.max_epochs, c.batch, c.teacher_weights) for c in cells} == {
        "Stfpm": (7, 32, "packaged"),
        "Patchcore": (1, 32, "packaged"),
        "Mkd": (7, 8, "w"),
    }
    assert {c.group for c in cells} == {"MVTecLOCO", "MVTecAD"}
    assert len({c.key for c in cells}) == len(cells)


def test_maps_share_a_training_and_nothing_else_does():
    maps = {"product": {"fusion": "product"}, "usual": {}}
    plan = plan_of(models=[{"class_path": "MixedTeacher", "maps": maps}, "Msfd"], data="SyntheticTextures")
    product, usual, other = plan.cells()
    assert (product.model, product.map_args) == ("MixedTeacher, product", {"fusion": "product"})
    assert (usual.model, usual.map_args) == ("MixedTeacher, usual", {})
    assert product.training == usual.training != other.training
    assert product.key != usual.key


def test_the_command_line_goes_before_the_file():
    plan = plan_of("--seeds", "[4]", "--image_size", "64", "--models", "Msfd", models=["Stfpm"], data=["MVTecAD"])
    (cell,) = plan.cells()
    assert (cell.model, cell.seed, cell.image_size) == ("Msfd", 4, 64)


def test_what_is_written_is_what_was_asked_for():
    values = {"data": ["MVTecAD"], "models": [{"class_path": "Msfd", "maps": {"sum": {"combination": "sum"}}}]}
    plan = plan_of(image_size=[64, 96], alarm_rate="5e-2", **values)
    Path("again.yaml").write_text(plan.to_yaml())
    assert plan_of("again.yaml") == plan
    assert [cell.key for cell in plan_of("again.yaml").cells()] == [cell.key for cell in plan.cells()]


def test_folders_in_either_layout_need_their_path_alone():
    folders("a/fabric/good", "a/fabric/bad", "a/paper/one/train/good", "a/paper/one/test/good", "a/paper/one/test/nep")
    folders("a/paper/one/ground_truth/nep", "a/paper/two/train/good", "a/paper/notes")
    cells = {
        cell.data: cell for cell in plan_of("--models", "Msfd", "--root", "a", "--data", "[fabric, paper]").cells()
    }
    assert {name: cell.group for name, cell in cells.items()} == {
        "fabric": "fabric",
        "paper/one": "paper",
        "paper/two": "paper",
    }
    assert cells["fabric"].data_args == {
        "name": "fabric",
        "root": "a/fabric",
        "normal_dir": "good",
        "abnormal_dir": "bad",
    }
    assert cells["paper/one"].data_args == {
        "name": "one",
        "root": "a/paper/one",
        "normal_dir": "train/good",
        "normal_test_dir": "test/good",
        "abnormal_dir": ["test/nep"],
        "mask_dir": ["ground_truth/nep"],
    }
    assert cells["paper/two"].data_args == {"name": "two", "root": "a/paper/two", "normal_dir": "train/good"}


def test_folders_that_cannot_be_read_are_named():
    folders("empty", "b/train/good", "b/test/nep", "b/test/cut", "b/ground_truth/nep")
    for data, sentence in {
        "empty": "empty has no good images where they are looked for: put them into good",
        "b": "ground_truth has no masks of cut: draw them",
        "[{class_path: Folder, init_args: {root: .}, categories: [none]}]": "none has no good images",
    }.items():
        with pytest.raises(DataError, match=sentence):
            plan_of("--data", data).cells()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"models": ["Stfpm"]}, "The benchmark needs data: give it."),
        ({"data": ["A"], "model": ["Stfpm"]}, "The benchmark has no model: it takes models, data, seeds, root,"),
        ({"data": ["A"], "models": []}, "The benchmark has no models: give at least one."),
        ({"data": [{"class_path": "A", "nam": "b"}]}, "data, A has no nam: it takes class_path, init_args, label,"),
        ({"data": [{"label": "b"}]}, "data, b needs class_path: give it."),
        ({"data": ["A", "A"]}, "The data name A more than once: give each once, and a label of its own."),
        ({"data": ["A"], "models": ["B", "B"]}, "The models name B more than once"),
        ({"data": ["A"], "seeds": [1, 1]}, "The seeds name 1 more than once"),
        (
            {"data": ["A"], "seeds": ["x"]},
            "The benchmark: seeds takes list[NonNegativeInt], not this: Not of type NonNegativeInt: invalid",
        ),
        (
            {"data": ["A"], "seeds": [-1]},
            "The benchmark: seeds takes list[NonNegativeInt], not this: Not of type NonNegativeInt: -1",
        ),
        (
            {"data": ["A"], "max_epochs": 0},
            "The benchmark: max_epochs takes PositiveInt, not this: Not of type PositiveInt: 0 does",
        ),
        (
            {"data": ["A"], "image_size": 64.5},
            "tuple[PositiveInt, PositiveInt], not this: 64.5.",
        ),
        (
            {"data": ["A"], "models": [{"class_path": "B", "maps": 3}]},
            "models, B: maps takes dict[str, dict[str, Any]], not this: 3.",
        ),
        ({"data": ["A"], "means": {"m": ["C"]}}, "means names C, but the data sets are called A: name these."),
    ],
)
def test_a_wrong_plan_is_refused_in_a_sentence(values, sentence):
    with pytest.raises(ConfigurationError) as error:
        plan_of(**values)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused():
    Path("broken.yaml").write_text("{{")
    for name, sentence in {"none.yaml": "does not exist", "broken.yaml": "Problems parsing config"}.items():
        with pytest.raises(ConfigurationError, match=sentence):
            plan_of(name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_plans_of_this_repository_can_be_read(path):
    assert parse([str(path), "--output", "run"])[0].models
