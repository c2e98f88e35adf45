"""Fixtures shared by all tests: tiny images, ready teachers, and one training and one export of each model.

Those of session scope are made once for each process of pytest-xdist, on first use.
"""

import functools
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from anomalib.engine import Engine
    from anomalib.models import AnomalibModule

REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = 64
TEACHERS = {
    "resnet18": ("layer1", "layer2", "layer3"),
    "efficientnet_b0": ("blocks.4", "blocks.6"),
    "tf_efficientnet_lite0": ("blocks.4", "blocks.6"),
    "vgg16": ("features.30",),
}
EPOCHS = 10


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Random numbers and the environment do not depend on which tests ran before in this process.

    Lightning's ``seed_everything`` leaves its seed in the environment, where processes started later find it.
    """
    environment = dict(os.environ)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is the one to be set
    torch.manual_seed(0)
    try:
        return (yield)
    finally:
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(autouse=True)
def usual_log_level() -> None:
    """Undo what a command or a notebook that ran in this process did to loggers: tests read warnings."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:  # pytest's own, to which NNCF gives its level
        handler.setLevel(logging.NOTSET)
    logging.getLogger("anomalib_mixedteacher").setLevel(logging.NOTSET)


def texture(rng: np.random.Generator, size: int = SIZE, defect: bool = False) -> np.ndarray:
    """Smooth noise over stripes, (H, W, 3) uint8; a defect is a bright square."""
    rows = np.linspace(0, 12 * np.pi, size)
    image = 120 + 30 * np.sin(rows + rng.uniform(0, 6))[:, None] + rng.normal(0, 10, (size, size))
    if defect:
        image[size // 4 : size // 2, size // 4 : size // 2] = 250
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.fixture
def images() -> torch.Tensor:
    """Four normalised images, (4, 3, 64, 64); the last one has a defect."""
    rng = np.random.default_rng(1)
    stack = np.stack([texture(rng, defect=index == 3) for index in range(4)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny PNGs of 96 pixels: good (8), good_test (6), bad (6) with masks of the bad ones."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for kind, count in (("good", 8), ("good_test", 6), ("bad", 6)):
        (root / kind).mkdir()
        for index in range(count):
            Image.fromarray(texture(rng, 96, kind == "bad")).save(root / kind / f"{index}.png")
    mask = np.zeros((96, 96), np.uint8)
    mask[24:48, 24:48] = 255
    (root / "mask").mkdir()
    for index in range(6):
        Image.fromarray(mask).save(root / "mask" / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def make_data(image_folder):
    """Build anomalib's own Folder datamodule over the tiny folder."""
    from anomalib.data import Folder

    def make(**arguments):
        folders = {"normal_dir": "good", "normal_test_dir": "good_test", "abnormal_dir": "bad", "mask_dir": "mask"}
        batches = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "seed": 0}
        return Folder(**{"name": "tiny", "root": image_folder, **folders, **batches, **arguments})

    return make


@pytest.fixture
def datamodule(make_data):
    """anomalib's own Folder datamodule over the tiny folder."""
    return make_data()


def quiet_engine(root: Path, **arguments):
    """anomalib's Engine on the CPU, without a progress bar."""
    from anomalib.engine import Engine

    usual = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Engine(**{"default_root_dir": root, **usual, **arguments})


@pytest.fixture
def make_engine(tmp_path):
    """Build anomalib's Engine on the CPU."""
    return functools.partial(quiet_engine, tmp_path / "results")


@pytest.fixture
def engine(make_engine):
    """anomalib's Engine for three epochs on the CPU."""
    return make_engine(max_epochs=3)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of teacher weights: random, normalised on images of many scales and contrasts.

    Statistics taken from a handful of like images would make tiny variances, and features that amplify rounding errors
    a thousandfold; pretrained teachers are not like that.
    """
    from safetensors.torch import save_file

    from anomalib_mixedteacher.components.teacher import Teacher, set_normalization_statistics

    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(32):
        noise = torch.randn(1, 3 if index % 2 else 1, *(2 * [2 ** (2 + index % 5)]), generator=generator)
        scaled = torch.nn.functional.interpolate(noise, (SIZE, SIZE), mode="bicubic")
        contrast, brightness = torch.rand(1, generator=generator), torch.randn(1, 3, 1, 1, generator=generator)
        images.append((0.2 + contrast) * scaled.expand(-1, 3, -1, -1) + brightness)
    folder = tmp_path_factory.mktemp("teachers")
    for backbone, layers in TEACHERS.items():
        teacher = Teacher(backbone, layers)
        teacher.load("random")
        set_normalization_statistics(teacher, torch.cat(images))
        save_file(teacher.state_dict(), folder / f"{backbone}.safetensors")
    return folder


@pytest.fixture(scope="session")
def build_model(teacher_folder):
    """Build a model for 64 pixels, not trained; its default teachers are the packaged ones, where they are packaged."""
    from anomalib_mixedteacher import plugin

    def build(name: str = "MixedTeacher", **arguments):
        torch.manual_seed(0)
        others = {"architecture", "resnet_layers", "efficientnet", "backbone", "layers"} & arguments.keys()
        weights = str(teacher_folder) if name == "Mkd" or others else "packaged"
        return plugin.public(name)(**{"teacher_weights": weights, "image_size": (SIZE, SIZE), **arguments})

    return build


@pytest.fixture
def tiny_model(build_model):
    """A MixedTeacher for 64 pixels, not trained."""
    return build_model()


@dataclass(frozen=True)
class Trained:
    """A trained model. It is shared: a test that changes one loads its own from the checkpoint."""

    model: "AnomalibModule"
    engine: "Engine"
    checkpoint: Path


@pytest.fixture(scope="session")
def trained(build_model, make_data, tmp_path_factory):
    """Train a model on the tiny folder, once for the same name and arguments."""

    @functools.cache
    def train(name: str = "MixedTeacher", **arguments) -> Trained:
        model = build_model(name, **arguments)
        if name == "Mkd":
            torch.manual_seed(100)  # of four orders of these few images, one taught it nothing
        engine = quiet_engine(tmp_path_factory.mktemp(name), max_epochs=EPOCHS)
        engine.fit(model=model, datamodule=make_data())
        return Trained(model.eval(), engine, Path(engine.best_model_path))

    return train


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """Export a trained model to OpenVINO, once for the same name and arguments; gives the ``.xml`` file."""

    @functools.cache
    def export(name: str = "MixedTeacher", **arguments) -> Path:
        checkpoint = trained(name, **arguments).checkpoint
        model = type(trained(name, **arguments).model).load_from_checkpoint(checkpoint)
        return model.to_openvino(tmp_path_factory.mktemp(f"{name}-exported"))

    return export
