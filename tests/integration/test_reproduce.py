"""The reproduction kit: its tables can be run, what is missing is said in a sentence, a dry run goes to the end."""

import shutil
from ast import literal_eval
from functools import cache
from pathlib import Path

import pytest
import yaml

from anomalib_mixedteacher.benchmark import command
from anomalib_mixedteacher.benchmark.build import build, build_data
from anomalib_mixedteacher.benchmark.layouts import check_layout
from anomalib_mixedteacher.benchmark.plan import ModelEntry, read_plan
from anomalib_mixedteacher.benchmark.published import read_published
from anomalib_mixedteacher.benchmark.reproduce import DRY_RUN, check_weights, find_table, main, make_dry
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.benchmark.stand_ins import make_stand_ins
from anomalib_mixedteacher.errors import ConfigurationError, DataError, WeightsError

REPOSITORY = Path(__file__).resolve().parents[2]
TABLES = sorted((REPOSITORY / "configs" / "paper").glob("*.yaml"))
DATA = {"MVTecAD": ["wood", "carpet"], "BTech": ["02"], "MagneticTile": []}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A stand-in for each data set."""
    root = tmp_path_factory.mktemp("stand_ins")
    for name, categories in DATA.items():
        make_stand_ins(name, categories, root / name)
    return root


@pytest.fixture
def copy_of(stand_ins, tmp_path):
    """A copy that may be damaged."""
    return lambda name: Path(shutil.copytree(stand_ins / name, tmp_path / name))


@cache
def build_once(class_path, arguments):
    """Build a model that several tables have; arguments that it does not take raise."""
    return build(class_path, "imagenet", 64, **literal_eval(arguments))[0]


def fail(*_, **__):
    pytest.fail("must not be called")


class TestTables:
    """The files in configs/paper."""

    def test_there_are_three(self):
        assert [path.stem for path in TABLES] == ["btad_wood", "mtd", "mvtec_textures"]

    @pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
    def test_models_and_data_sets_take_their_arguments(self, path):
        plan = read_plan(path)
        assert (plan.teacher_weights, plan.image_size, plan.epochs, len(plan.seeds)) == ("imagenet", 256, 100, 3)
        for entry in plan.models:
            build_once(entry.class_path, str(entry.init_args))
        cells = plan.cells()
        for cell in cells[:: len(plan.models)]:
            build_data(cell.data_class, cell.data_args, cell.seed, cell.batch)
        assert {cell.data for cell in cells} == {
            "btad_wood": {"BTech/02"},
            "mtd": {"MagneticTile"},
            "mvtec_textures": {f"MVTecAD/{name}" for name in ("carpet", "grid", "leather", "tile", "wood")},
        }[path.stem]

    @pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
    def test_the_official_recipe_is_that_of_the_official_code(self, path):
        first = read_plan(path).models[0]
        cell = read_plan(path).cells()[0]
        model = build_once(first.class_path, str(first.init_args))
        assert model.freeze_bn_after_first_epoch is True
        assert model.learning_rate == 4e-4
        assert model.model.student_init == "teacher"
        assert model.model.anomaly_map_generator.fusion == "product"
        assert (cell.image_size, cell.epochs, cell.batch) == (256, 100, 8)

    def test_most_models_of_the_textures_have_published_figures(self):
        published, plan = read_published(), read_plan(find_table("mvtec_textures"))
        found = {
            entry.label: {f.metric for f in published.find(entry.class_path, entry.init_args, "MVTecAD", "textures")}
            for entry in plan.models
        }
        assert {label for label, metrics in found.items() if "image_AUROC" not in metrics} == {"Msfd"}

    def test_names_and_paths_are_found_from_anywhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert find_table("mtd") == REPOSITORY / "configs" / "paper" / "mtd.yaml"
        Path("own.yaml").touch()
        assert find_table("own.yaml") == Path("own.yaml")
        with pytest.raises(ConfigurationError, match=r"There is no table none: give the path of a YAML file"):
            find_table("none")


class TestData:
    """Layouts of the data sets, and their stand-ins."""

    @pytest.mark.parametrize("name", DATA)
    def test_stand_ins_have_the_layout(self, stand_ins, name):
        for category in DATA[name] or [""]:
            check_layout(name, stand_ins / name, category)

    @pytest.mark.parametrize("name", DATA)
    def test_stand_ins_are_read_by_their_datamodules(self, stand_ins, name):
        arguments = {"root": str(stand_ins / name), "num_workers": 0}
        data = build_data(name, arguments | ({"category": DATA[name][0]} if DATA[name] else {}), 0, 4)
        data.prepare_data()
        data.setup()
        assert set(data.train_data.samples.label_index) == set(data.val_data.samples.label_index) == {0}
        assert set(data.test_data.samples.label_index) == {0, 1}
        masks = {item.gt_label.item(): item.gt_mask for item in data.test_data}
        assert 0 < masks[1].sum() < masks[1].numel()

    def test_a_stand_in_that_is_there_is_kept_and_completed(self, stand_ins, tmp_path):
        make_stand_ins("anomalib.data.MVTecAD", ["wood"], tmp_path / "data")
        image = tmp_path / "data/wood/train/good/000.png"
        written = image.stat().st_mtime_ns
        make_stand_ins("MVTecAD", ["wood", "carpet"], tmp_path / "data")
        assert image.stat().st_mtime_ns == written
        assert image.read_bytes() == (stand_ins / "MVTecAD/wood/train/good/000.png").read_bytes()
        assert image.read_bytes() != (tmp_path / "data/carpet/train/good/000.png").read_bytes()
        assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["carpet", "wood"]

    @pytest.mark.parametrize(
        ("name", "category", "lost", "sentence"),
        [
            ("MVTecAD", "wood", "wood", r"no \.png images in .*wood/train/good: give .* MVTec AD, .* as --root\.$"),
            ("MVTecAD", "wood", "wood/test/good", r"no \.png images in .*wood/test/good: give"),
            (
                "MVTecAD",
                "wood",
                "wood/ground_truth/hole/002_mask.png",
                r"wood/test/hole/002\.png has no mask .*002_mask",
            ),
            ("BTech", "02", "02/train/ok", r"no \.bmp or \.png images in .*02/train/ok: give .* BTAD"),
            ("BTech", "02", "02/test/ko", r"images in the defects' folders below .*02/test: give"),
            ("BTech", "02", "02/ground_truth", r"has no mask .*02/ground_truth/ko/000\.png: unpack BTAD again\.$"),
            ("MagneticTile", "", "MT_Free", r"exp<k>_num_<id>\.jpg in the folder Imgs of MT_Free below"),
        ],
    )
    def test_what_is_missing_is_one_sentence(self, copy_of, name, category, lost, sentence):
        root = copy_of(name)
        shutil.rmtree(root / lost) if (root / lost).is_dir() else (root / lost).unlink()
        with pytest.raises(DataError, match=sentence) as raised:
            check_layout(name, root, category)
        assert "\n" not in str(raised.value)

    def test_a_data_set_without_stand_ins_is_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match="There are no stand-ins for Visa: a dry run takes MVTecAD, BTech"):
            make_stand_ins("Visa", ["candle"], tmp_path / "data")


class TestRefusals:
    """What ends in a sentence, before anything is trained or fetched."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["mvtec_textures", "--root", "."], "There are no .png images in carpet/train/good: give the folder of"),
            (["mvtec_textures", "--root", "nowhere"], "There is no folder nowhere: give the folder of the unpacked"),
            (["btad_wood"], "There are no .bmp or .png images in datasets/BTech/02/train/ok"),
            (["mtd", "--root", "."], "below .: get the data set from"),
            (["mtd", "--root", ".", "--dry-run"], "A dry run makes its own images: leave --root out"),
            (["none"], "There is no table none"),
        ],
    )
    def test_status_1_and_a_sentence(self, arguments, sentence, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(command, "run", fail)
        assert main([*arguments, "--output", "run"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("reproduce: ")
        assert sentence in line
        assert not Path("run").exists()

    def test_weights_are_looked_for_before_training(self, stand_ins, tmp_path, monkeypatch, capsys):
        table = yaml.safe_load(find_table("mtd").read_text()) | {"teacher_weights": str(tmp_path)}
        (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
        monkeypatch.setattr(command, "run", fail)
        arguments = ["--root", str(stand_ins / "MagneticTile"), "--output", str(tmp_path / "run")]
        assert main([str(tmp_path / "table.yaml"), *arguments]) == 1
        assert f"The weights folder {tmp_path} has no resnet18.safetensors" in capsys.readouterr().err

    @pytest.mark.parametrize("model", ["Stfpm", "Mkd"])
    def test_weights_of_each_model_are_looked_for(self, model, teacher_folder):
        plan = read_plan(find_table("mtd"))
        plan.models[:] = [ModelEntry("MixedTeacher"), ModelEntry(model)]
        object.__setattr__(plan, "teacher_weights", str(teacher_folder))
        if model == "Stfpm":
            check_weights(plan)
        else:
            with pytest.raises(WeightsError, match=r"has no vgg16\.safetensors"):
                check_weights(plan)


def test_a_dry_plan_keeps_what_is_compared(tmp_path):
    plan = read_plan(find_table("mvtec_textures"))
    dry = make_dry(plan, tmp_path)
    assert [entry.label for entry in dry.models] == [entry.label for entry in plan.models]
    assert [entry.init_args for entry in dry.models] == [entry.init_args for entry in plan.models]
    cells = dry.cells()
    assert len(cells) == len(plan.cells()) / len(plan.seeds)
    assert {(cell.epochs, cell.image_size, cell.teacher_weights) for cell in cells} == {(1, 64, "random")}
    assert {cell.data for cell in cells} == {f"DRY RUN {cell.data}" for cell in plan.cells()}
    assert not {cell.key for cell in cells} & {cell.key for cell in plan.cells()}


def test_a_dry_run_goes_to_the_end_and_says_that_it_is_one(tmp_path, monkeypatch, capsys):
    table = {  # the smallest model with published figures
        "models": [{"class_path": "Stfpm", "init_args": {"backbone": "resnet18"}}],
        "data": [{"class_path": "MVTecAD", "categories": ["wood"]}],
        "seeds": [0, 1],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(table))
    run = tmp_path / "run"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([str(tmp_path / "tiny.yaml"), "--dry-run", "--output", str(run)]) == 0
    printed = capsys.readouterr().out
    compared = (run / "published.md").read_text()
    assert compared in printed
    for text in (printed.splitlines()[0], printed.splitlines()[-1], compared, (run / "table.md").read_text()):
        assert DRY_RUN in text
    for name in ("table.csv", "table.json", "benchmark.yaml"):
        assert "DRY RUN MVTecAD" in (run / name).read_text()

    (result,) = RunFolder(run).results()
    measured = result.metrics["image_AUROC"]
    for published, source in ((0.996, 1), (0.961, 2)):  # the authors', anomalib's
        row = f"| Stfpm | image AUROC | {measured:.3f} | {published:.3f} | {measured - published:+.3f} | {source} |"
        assert row in compared
    assert f"| Stfpm | PRO | {result.metrics['PRO']:.3f} | 0.901 |" in compared
    assert "1. Wang et al." in compared
    assert "2. anomalib" in compared
