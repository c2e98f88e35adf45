"""The package's own command, in-process."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib_mixedteacher.components.checkpoint_file import WholeCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_mixedteacher.cli import COMMANDS, _with_own_defaults, main

REPOSITORY = Path(__file__).resolve().parents[2]


def folder_arguments(image_folder, results):
    return [
        "--data=Folder", "--data.name=tiny", f"--data.root={image_folder}", "--data.normal_dir=good",
        "--data.normal_test_dir=good_test", "--data.abnormal_dir=bad", "--data.mask_dir=mask",
        "--data.num_workers=0", "--data.train_batch_size=4", f"--default_root_dir={results}",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip


def test_help_and_wrong_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in (*COMMANDS, *COMMANDS.values()))
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "unknown command 'trian'; choose one of train, test, predict, export" in capsys.readouterr().err


def test_version(capsys):
    from anomalib_mixedteacher import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"anomalib-mixedteacher {__version__}"


def test_a_resumed_training_tests_what_it_trained(image_folder, tmp_path, monkeypatch):
    save, test = WholeCheckpointIO.save_checkpoint, Trainer.test
    first, tested = tmp_path / "first.ckpt", []

    def save_and_copy(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if checkpoint["epoch"] == 0:
            shutil.copy(path, first)

    def look_and_test(self, model, *args, **kwargs):
        outcome = test(self, model, *args, **kwargs)
        tested.append({name: value.clone() for name, value in model.state_dict().items() if "students" in name})
        return outcome

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", save_and_copy)
    monkeypatch.setattr(Trainer, "test", look_and_test)
    arguments = ["train", *folder_arguments(image_folder, tmp_path), "--model.teacher_weights=random"]
    arguments += ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"]
    assert main(arguments) == 0
    assert main([*arguments, f"--ckpt_path={first}"]) == 0
    whole, resumed = tested
    begun = torch.load(first, weights_only=False)["state_dict"]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not all(torch.equal(value, begun[name]) for name, value in resumed.items())


def test_train_test_predict_export(image_folder, tmp_path, capsys):
    """One model through all four commands, MixedTeacher being the model where none is named."""
    data = folder_arguments(image_folder, tmp_path)
    model = ["--model.teacher_weights=random", "--model.sigma=2.0", "--model.resnet_layers=[1]", "--model.fusion=sum"]
    assert main(["train", *data, *model, "--trainer.max_epochs=1"]) == 0
    checkpoint = next(tmp_path.rglob("model.ckpt"))
    assert torch.load(checkpoint, weights_only=False)["hyper_parameters"]["sigma"] == 2.0
    capsys.readouterr()
    # the model's arguments are not repeated: the checkpoint knows them
    assert main(["test", *data, f"--ckpt_path={checkpoint}"]) == 0
    assert "image_AUROC" in capsys.readouterr().out
    trainer = data[-3:]
    image = image_folder / "bad" / "0.png"
    assert main(["predict", f"--data={image}", f"--ckpt_path={checkpoint}", *trainer]) == 0
    assert list(tmp_path.rglob("images/**/0.png"))  # the heat-map overlay
    export = ["--export_type=onnx", f"--export_root={tmp_path / 'exported'}", f"--ckpt_path={checkpoint}"]
    assert main(["export", *export, *trainer]) == 0
    assert list((tmp_path / "exported").rglob("model.onnx"))
    export[0] = "--export_type=openvino"
    assert main(["export", *export, *data, "--compression_type=INT8_PTQ", "--max_drop=1"]) == 0
    (exported,) = (tmp_path / "exported").rglob("model.xml")
    capsys.readouterr()
    assert main(["predict", str(exported), str(image), "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == str(image)


@pytest.fixture
def parsed(monkeypatch):
    """Command lines whose classes were made, and that were not run."""
    lines = []
    monkeypatch.setattr(AnomalibCLI, "_run_subcommand", lambda self: lines.append(self))
    return lines


def test_seed_everything_seeds_the_weights(image_folder, tmp_path, parsed):
    # anomalib 2.7 takes the option and does nothing with it
    arguments = ["train", *folder_arguments(image_folder, tmp_path), "--model.teacher_weights=random"]
    for seed in ([], ["--seed_everything=0"], ["--seed_everything=0"], ["--seed_everything=1"]):
        torch.manual_seed(1234 + len(parsed))  # what happened before in this process
        assert main([*arguments, *seed]) == 0
    unseeded, first, again, other = (
        torch.cat([p.detach().flatten() for p in line.model.model.students.parameters()]) for line in parsed
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, unseeded)


def test_all_commands_see_the_same_split(image_folder, tmp_path, parsed):
    # anomalib's Folder draws anew where no seed is given: a later test would judge images that were trained on
    arguments = [a for a in folder_arguments(image_folder, tmp_path) if "normal_test_dir" not in a]
    for index, line in enumerate((["train"], ["test"], ["export", "--export_type=onnx"], ["train", "--data.seed=5"])):
        torch.manual_seed(index)
        assert main([*line, *arguments]) == 0
        parsed[-1].datamodule.setup(TrainerFn.FITTING)
    trained, tested, exported, other = (sorted(line.datamodule.train_data.samples.image_path) for line in parsed)
    assert trained == tested == exported
    assert trained != other


def test_export_has_its_own_limit_to_what_may_be_lost():
    assert _with_own_defaults(["export", "--compression_type=INT8_PTQ"]) == [
        "export", "--model", "MixedTeacher", "--max_drop", "0.002", "--compression_type=INT8_PTQ"
    ]  # fmt: skip
    assert _with_own_defaults(["export", "--model=Stfpm"]) == ["export", "--model=Stfpm"]
    given = ["export", "--model=Stfpm", "--max_drop=0.1"]
    assert _with_own_defaults(given) == given


@pytest.mark.parametrize("option", ["--config {}", "--config={}", "-c {}"])
@pytest.mark.parametrize(
    ("content", "own"),
    [
        ("data: {class_path: SyntheticTextures}", "--model MixedTeacher --max_drop 0.002"),
        ("model: {class_path: Stfpm}", "--max_drop 0.002"),
        ("max_drop: 0.1", "--model MixedTeacher"),
        ("model.class_path: Stfpm\nmax_drop: 0.1", ""),
        ("- no settings", None),
        ("{", None),
    ],
)
def test_own_defaults_are_for_what_a_configuration_file_leaves_open(tmp_path, option, content, own):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    given = [*option.format(path).split(), "--compression_type=INT8_PTQ"]
    expected = given if own is None else [*own.split(), *given]
    assert _with_own_defaults(["export", *given]) == ["export", *expected]


def test_own_defaults_beside_several_configuration_files(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {class_path: SyntheticTextures}")
    (tmp_path / "b.yaml").write_text("model: {class_path: Stfpm}\ncompression_type: INT8_PTQ")
    given = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert _with_own_defaults(["export", *given]) == ["export", "--max_drop", "0.002", *given]
    assert _with_own_defaults(["train", *given[:2]]) == ["train", "--model", "MixedTeacher", *given[:2]]
    missing = ["train", "--config", str(tmp_path / "c.yaml")]
    assert _with_own_defaults(missing) == missing


def test_a_configuration_file_without_a_model_trains_mixed_teacher(tmp_path, capsys):
    path = tmp_path / "data.yaml"
    path.write_text("data: {class_path: anomalib_mixedteacher.SyntheticTextures}")
    with pytest.raises(SystemExit) as info:
        main(["train", "--config", str(path), "--print_config"])
    assert info.value.code == 0
    assert "class_path: anomalib_mixedteacher.MixedTeacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model.teacher_weights=imagnet"], "teacher_weights='imagnet' is neither one of"),
        (["--model.teacher_weights=random", "--model.resnet_layers=[7]"], "must be one or more of 1, 2, 3, 4"),
        (["--data=SyntheticTextures", "--data.category=tweed"], "choose one of weave, grain, grid, cells, speckle"),
    ],
)
def test_an_error_is_one_sentence(image_folder, tmp_path, capsys, arguments, sentence):
    data = folder_arguments(image_folder, tmp_path)
    assert main(["train", *data, *arguments, "--trainer.max_epochs=1"]) == 1
    error = capsys.readouterr().err
    assert sentence in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("mixedteacher: ")
    assert "Traceback" not in error


def test_unknown_fusion_is_a_usage_error_that_lists_the_choices(image_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as info:
        main(["train", *folder_arguments(image_folder, tmp_path), "--model.fusion=mean"])
    assert info.value.code == 2
    error = capsys.readouterr().err
    assert "normalized_product" in error
    assert "mean" in error


def test_export_before_training_is_one_sentence(tmp_path, capsys):
    assert main(["export", "--export_type=onnx", f"--default_root_dir={tmp_path}"]) == 1
    assert "train the model first, or give a trained checkpoint (--ckpt_path" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


def test_missing_and_empty_folders_and_a_broken_picture(image_folder, tmp_path, capsys):
    arguments = [a for a in folder_arguments(image_folder, tmp_path) if "normal_dir" not in a]
    random = "--model.teacher_weights=random"
    assert main(["train", *arguments, random, "--data.normal_dir=nowhere"]) == 1
    assert f"There is no file or folder {image_folder}/nowhere: check the path" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["train", *arguments, random, f"--data.normal_dir={tmp_path / 'empty'}"]) == 1
    assert f"There are no images in {tmp_path}/empty: put images there" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert main(["predict", f"--data={tmp_path / 'broken.png'}", f"--default_root_dir={tmp_path}"]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert main(["predict", "--data=SyntheticTextures", f"--ckpt_path={tmp_path / 'no.ckpt'}"]) == 1
    assert "no.ckpt: check the path" in capsys.readouterr().err


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_file_parses(config, capsys):
    with pytest.raises(SystemExit) as info:
        main(["train", "--config", str(config), "--data=SyntheticTextures", "--print_config"])
    assert info.value.code == 0
    assert "class_path: anomalib_mixedteacher." in capsys.readouterr().out


def test_a_wrong_choice_ends_in_one_sentence(capsys):
    with pytest.raises(SystemExit) as info:
        main(["train", "--model", "Mkd", "--model.localization", "saliency", "--data", "SyntheticTextures"])
    assert info.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "mixedteacher: localization cannot be 'saliency': choose one of 'gradient', 'smooth_grad', 'guided_backprop'."
    )


def test_an_unknown_argument_is_left_to_the_parser(capsys):
    with pytest.raises(SystemExit) as info:
        main(["train", "--model", "Mkd", "--model.localisation", "gradient", "--data", "SyntheticTextures"])
    assert info.value.code == 2
    assert "localisation" in capsys.readouterr().err
