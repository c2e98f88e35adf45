"""Models of a benchmark: the same teachers for all, and what is refused before anything is trained."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from anomalib_mixedteacher.benchmark.models import build, build_data, check_model, load_peer_teacher, map_arguments
from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError, WeightsError

CELL = Cell("m", "Stfpm", {"layers": ["layer1", "layer2"]}, "d", "SyntheticTextures", {}, 3, "random", 64, 1, 5, 0.05)


def of(class_path, map_args=None, **changed):
    init_args = {} if class_path != "Stfpm" else CELL.init_args
    return replace(CELL, class_path=class_path, **{"init_args": init_args, "map_args": map_args or {}} | changed)


@pytest.mark.parametrize("name", ["Stfpm", "Patchcore"])
def test_anomalibs_models_see_with_the_given_teacher(name, tmp_path):
    torch.manual_seed(1)
    teacher = timm.create_model("resnet18").eval()
    save_file(
        {key: value.contiguous() for key, value in teacher.state_dict().items()}, tmp_path / "resnet18.safetensors"
    )
    model, _ = build(of(name, init_args={"layers": ["layer1", "layer2"]}))
    load_peer_teacher(model, str(tmp_path), torch.empty(0))
    extractor = model.model.teacher_model if name == "Stfpm" else model.model.feature_extractor
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = teacher.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
        found = list(extractor.eval()(images).values())
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours)


def test_a_teacher_that_is_not_there_is_an_error_in_training(tmp_path):
    model, _ = build(CELL)
    with pytest.raises(WeightsError, match="resnet18"):
        load_peer_teacher(model, str(tmp_path), torch.empty(0))


def test_images_of_any_shape_and_the_budget_reach_the_model():
    for name in ("MixedTeacher", "Stfpm"):
        model, _ = build(of(name, image_size=(64, 96), alarm_rate=0.2))
        assert model.pre_processor.transform(torch.rand(1, 3, 50, 40)).shape[-2:] == (64, 96)
        assert model.post_processor.alarm_rate == 0.2


def test_arguments_of_a_map_are_those_that_training_does_not_know():
    assert map_arguments(build(of("MixedTeacher"))[0]) == {"fusion", "sigma"}
    assert "cosine_weight" not in map_arguments(build(of("Msfd"))[0])
    check_model(of("MixedTeacher", {"fusion": "product"}))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (of("Nonsense"), "There is no model Nonsense: take one of .*MixedTeacher"),
        (of("MixedTeacher", init_args={"nonsense": 1}), "MixedTeacher cannot take its arguments .*nonsense"),
        (of("MixedTeacher", init_args={"fusion": "nonsense"}), "Unknown fusion 'nonsense'"),
        (of("MixedTeacher", {"fusion": "nonsense"}), "Unknown fusion 'nonsense'"),
        (of("MixedTeacher", {"learning_rate": 1.0}), "learning_rate is no argument of MixedTeacher's map alone, which"),
        (of("Stfpm", {"layers": ["layer1"]}), "layers is no argument of Stfpm's map alone, which has none"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(cell, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        check_model(cell)


def test_a_budget_that_is_no_share_is_refused():
    with pytest.raises(CalibrationError):
        check_model(of("Stfpm", alarm_rate=1.5))


def test_validation_images_are_a_fifth_of_the_training_images_and_seeded():
    sizes = {"image_size": 64, "num_train": 10, "num_test_good": 3, "num_defects_per_kind": 1}
    datamodule = build_data(replace(CELL, data_args=sizes))
    datamodule.prepare_data()
    datamodule.setup()
    assert (len(datamodule.train_data), len(datamodule.val_data), len(datamodule.test_data)) == (8, 2, 9)
    assert (datamodule.seed, datamodule.train_batch_size) == (3, 5)


@pytest.mark.parametrize(
    ("data_class", "data_args", "sentence"),
    [
        ("nothing", {}, "There is no data set or folder nothing"),
        ("SyntheticTextures", {"nonsense": 1}, "SyntheticTextures has no nonsense: it takes root, category"),
        ("Folder", {}, "Folder cannot take its arguments .*normal_dir"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_refused(data_class, data_args, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        build_data(replace(CELL, data_class=data_class, data_args=data_args))
