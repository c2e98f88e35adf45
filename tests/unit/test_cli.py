"""The package's own command, in-process."""

import contextlib
import inspect
import io
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from anomalib.cli import AnomalibCLI
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_mixedteacher import MixedTeacher, __version__, plugin
from anomalib_mixedteacher.cli import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def folder_arguments(image_folder, results):
    return [
        "--data=Folder", "--data.name=tiny", f"--data.root={image_folder}", "--data.normal_dir=good",
        "--data.normal_test_dir=good_test", "--data.abnormal_dir=bad", "--data.mask_dir=mask",
        "--data.num_workers=0", "--data.train_batch_size=4", f"--default_root_dir={results}", *TRAINER,
    ]  # fmt: skip


def test_help_version_and_wrong_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in (*COMMANDS, *COMMANDS.values()))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"anomalib-mixedteacher {__version__}"
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "unknown command 'trian'; choose one of train, test, predict, export" in capsys.readouterr().err


def test_help_of_a_command_lists_the_options_of_the_model(capsys):
    assert main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert set(re.findall(r"--model\.(\w+) \(default", printed)) == set(inspect.signature(MixedTeacher).parameters)
    assert "--data Folder" in printed


@pytest.fixture(scope="module")
def training(image_folder, tmp_path_factory) -> tuple[Path, str]:
    """A folder in which a model was trained with arguments of its own, and what the command printed."""
    results, printed = tmp_path_factory.mktemp("results"), io.StringIO()
    model = ["--model.sigma=2.0", "--model.resnet_layers=[1]", "--model.image_size=[64,64]", "--trainer.max_epochs=2"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert main(["train", *folder_arguments(image_folder, results), *model]) == 0
    return results, printed.getvalue()


def test_train_says_what_it_does_and_what_came_of_it(training):
    results, printed = training
    assert "packaged teachers resnet18 and tf_efficientnet_lite0: 8 good images of Folder tiny, 2 epochs" in printed
    assert re.search(r"^test: .*image AUROC \d\.\d{3}", printed, re.MULTILINE)
    assert re.search(r"^thresholds \(raw scores\): image \S+, pixel \d", printed, re.MULTILINE)
    checkpoint = Path(re.search(r"^checkpoint: (.+)$", printed, re.MULTILINE)[1])
    assert checkpoint.is_relative_to(results)
    assert f"next: mixedteacher export --export_type openvino --ckpt_path {checkpoint}" in printed
    assert len(printed.splitlines()) < 40


def test_a_checkpoint_needs_none_of_its_arguments_again(training, image_folder, tmp_path, capsys):
    checkpoint = next(training[0].rglob("model.ckpt"))
    assert main(["test", *folder_arguments(image_folder, tmp_path), f"--ckpt_path={checkpoint}"]) == 0
    assert "image_AUROC" in capsys.readouterr().out
    image, place = image_folder / "bad" / "0.png", f"--default_root_dir={tmp_path}"
    assert main(["predict", f"--data={image}", f"--ckpt_path={checkpoint}", place, *TRAINER]) == 0
    assert list(tmp_path.rglob("images/**/0.png"))  # the heat map
    capsys.readouterr()
    for kind in ("onnx", "openvino"):
        export = [f"--export_type={kind}", f"--export_root={tmp_path / 'exported'}", f"--ckpt_path={checkpoint}"]
        assert main(["export", *export, place, *TRAINER]) == 0
    (onnx,), (exported,) = ((tmp_path / "exported").rglob(name) for name in ("model.onnx", "model.xml"))
    said = [f"exported: {onnx}", f"exported: {exported}", f"next: mixedteacher predict {exported} IMAGES"]
    assert capsys.readouterr().out.splitlines() == said
    assert main(["predict", str(exported), str(image), "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == str(image)


def test_without_validation_images_there_are_no_thresholds(image_folder, tmp_path, capsys):
    data = ["--data=Folder", "--data.name=tiny", f"--data.root={image_folder}", "--data.normal_dir=good"]
    data += ["--data.num_workers=0", "--data.test_split_mode=none", "--data.val_split_mode=none"]
    without = ["--trainer.limit_val_batches=0", "--trainer.max_epochs=1", "--model.image_size=[64,64]"]
    assert main(["train", *data, *TRAINER, *without, f"--default_root_dir={tmp_path}"]) == 0
    assert "thresholds: none; 'mixedteacher calibrate' sets them" in capsys.readouterr().out
    assert list(tmp_path.rglob("model.ckpt"))


def test_a_resumed_training_tests_what_it_trained(image_folder, tmp_path, monkeypatch):
    save, test = Trainer.save_checkpoint, Trainer.test
    first, tested = tmp_path / "first.ckpt", dict[str, torch.Tensor]()

    def save_and_copy(self, filepath, *args, **kwargs):
        save(self, filepath, *args, **kwargs)
        if self.current_epoch == 0 and not first.exists():
            shutil.copy(filepath, first)

    def look_and_test(self, model, *args, **kwargs):
        tested.update({name: value.clone() for name, value in model.state_dict().items() if "students" in name})
        return test(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", save_and_copy)
    monkeypatch.setattr(Trainer, "test", look_and_test)
    arguments = ["train", *folder_arguments(image_folder, tmp_path), "--model.image_size=[64,64]"]
    arguments += ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"]
    assert main(arguments) == 0
    assert main([*arguments, f"--ckpt_path={first}"]) == 0
    begun, last = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (first, next(tmp_path.rglob("latest/**/model.ckpt")))
    )
    assert all(torch.equal(value, last[name]) for name, value in tested.items())
    assert not all(torch.equal(value, begun[name]) for name, value in tested.items())


@pytest.fixture
def parsed(monkeypatch):
    """Command lines whose classes were made, and that were not run."""
    lines = []
    monkeypatch.setattr(AnomalibCLI, "_run_subcommand", lambda self: lines.append(self))
    return lines


def test_seed_everything_seeds_the_weights(image_folder, tmp_path, parsed):
    # anomalib 2.7 takes the option and does nothing with it
    for seed in ([], ["--seed_everything=0"], ["--seed_everything=0"]):
        torch.manual_seed(1234 + len(parsed))  # what happened before in this process
        assert main(["train", *folder_arguments(image_folder, tmp_path), *seed]) == 0
    unseeded, first, again = (
        torch.cat([p.detach().flatten() for p in line.model.model.students.parameters()]) for line in parsed
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, unseeded)


def test_all_commands_see_the_same_split(image_folder, tmp_path, parsed):
    # anomalib's Folder draws anew where no seed is given: a later test would judge images that were trained on
    arguments = [a for a in folder_arguments(image_folder, tmp_path) if "normal_test_dir" not in a]
    for index, line in enumerate((["train"], ["export", "--export_type=onnx"], ["train", "--data.seed=5"])):
        torch.manual_seed(index)
        assert main([*line, *arguments]) == 0
        parsed[-1].datamodule.setup(TrainerFn.FITTING)
    trained, exported, other = (sorted(line.datamodule.train_data.samples.image_path) for line in parsed)
    assert trained == exported
    assert trained != other


def test_own_defaults_are_for_what_a_configuration_file_leaves_open(tmp_path, parsed):
    path = tmp_path / "own.yaml"
    expected = {
        "export_type: openvino": ("MixedTeacher", 0.002),
        "model: {class_path: Msfd}\nexport_type: openvino": ("Msfd", 0.002),
        "export_type: openvino\nmax_drop: 0.1": ("MixedTeacher", 0.1),
    }
    for content, found in expected.items():
        path.write_text(content)
        assert main(["export", "--config", str(path), "--compression_type=FP16"]) == 0
        line = parsed[-1]
        assert (type(line.model).__name__, line.config["export"]["max_drop"]) == found


CONFIGS = [path for path in sorted((REPOSITORY / "configs").rglob("*.yaml")) if path.parent.name != "benchmark"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_files_build_what_they_name(path):
    content = yaml.safe_load(path.read_text())
    for part in content.keys() & {"model", "data"}:
        plugin.public(content[part]["class_path"].rpartition(".")[2])(**content[part].get("init_args", {}))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model.teacher_weights=imagnet"], "teacher_weights='imagnet' is neither one of"),
        (["--model.resnet_layers=[7]"], "must be one or more of 1, 2, 3"),
        (["--data.normal_dir=nowhere"], "nowhere: check the path"),
        (["--data.normal_dir=empty"], "empty: put images there"),
        (["--data=SyntheticTextures", "--data.category=tweed"], "choose one of weave, grain, grid, cells, speckle"),
    ],
)
def test_an_error_is_one_sentence(image_folder, tmp_path, capsys, arguments, sentence):
    root = tmp_path / "data"
    root.mkdir()
    (root / "good").symlink_to(image_folder / "good")
    (root / "empty").mkdir()
    data = [
        "--data=Folder",
        "--data.name=tiny",
        f"--data.root={root}",
        "--data.normal_dir=good",
        "--data.num_workers=0",
    ]
    assert main(["train", *data, *TRAINER, f"--default_root_dir={tmp_path}", *arguments, "--trainer.max_epochs=1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mixedteacher: ")
    assert sentence in last


def test_what_cannot_be_used_without_a_training_is_refused(tmp_path, capsys):
    place = f"--default_root_dir={tmp_path}"
    assert main(["export", "--export_type=onnx", place]) == 1
    assert "train the model first, or give a trained checkpoint (--ckpt_path" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))
    assert main(["predict", "--data=SyntheticTextures", f"--ckpt_path={tmp_path / 'no.ckpt'}", place]) == 1
    assert "no.ckpt: check the path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--model.fusion=mean", "mixedteacher: fusion cannot be 'mean': choose one of 'standardized_sum', 'product'."),
        ("--model.sigm=3", "sigm"),
    ],
)
def test_a_wrong_argument_of_the_model_is_a_usage_error(capsys, option, told):
    with pytest.raises(SystemExit) as info:
        main(["train", option, "--data", "SyntheticTextures"])
    assert info.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("library", ["lightning.pytorch.loggers.", "anomalib.loggers.Anomalib"])
@pytest.mark.parametrize("name", ["TensorBoard", "MLFlow", "Wandb"])
def test_a_logger_whose_package_is_missing(capsys, library, name):
    if find_spec(package := name.lower()) is not None:
        pytest.skip("it is installed here")
    with contextlib.suppress(SystemExit):  # some are refused by the parser, others by their constructor
        assert main(["train", f"--trainer.logger={library}{name}Logger", "--data", "SyntheticTextures"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"not installed: pip install {package}.")


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_only_openvino_is_compressed(tmp_path, capsys, kind):
    assert main(["export", f"--export_type={kind}", "--compression_type=INT8_PTQ", f"--export_root={tmp_path}"]) == 1
    assert "--compression_type is for --export_type openvino, which alone is compressed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
