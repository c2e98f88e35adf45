"""Fixtures shared by all tests: tiny images, a tiny data set, a model with ready teachers."""

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = 64


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


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny PNGs: good (8), good_test (6), bad (6) with masks of the bad ones."""
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


@pytest.fixture
def datamodule(image_folder: Path):
    """anomalib's own Folder datamodule over the tiny folder."""
    from anomalib.data import Folder

    return Folder(
        name="tiny",
        root=image_folder,
        normal_dir="good",
        normal_test_dir="good_test",
        abnormal_dir="bad",
        mask_dir="mask",
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        seed=0,
    )


@pytest.fixture
def engine(tmp_path: Path):
    """anomalib's Engine for three epochs on the CPU."""
    from anomalib.engine import Engine

    return Engine(
        max_epochs=3, default_root_dir=tmp_path / "results", accelerator="cpu", enable_progress_bar=False, logger=False
    )


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of teacher weights: random, normalised on images of many scales and contrasts.

    Statistics taken from a handful of like images would make tiny variances, and features that amplify rounding errors
    a thousandfold; pretrained teachers are not like that.
    """
    from safetensors.torch import save_file

    from anomalib_mixedteacher.components import Teacher

    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(32):
        noise = torch.randn(1, 3 if index % 2 else 1, *(2 * [2 ** (2 + index % 5)]), generator=generator)
        scaled = torch.nn.functional.interpolate(noise, (SIZE, SIZE), mode="bicubic")
        contrast, brightness = torch.rand(1, generator=generator), torch.randn(1, 3, 1, 1, generator=generator)
        images.append((0.2 + contrast) * scaled.expand(-1, 3, -1, -1) + brightness)
    folder = tmp_path_factory.mktemp("teachers")
    for backbone, stages in (("resnet18", (1, 2, 3, 4)), ("efficientnet_b0", (3, 4))):
        teacher = Teacher(backbone, stages)
        teacher.load("random")
        teacher.set_normalization_statistics(torch.cat(images))
        save_file(teacher.extractor.net.state_dict(), folder / f"{backbone}.safetensors")
    return folder


@pytest.fixture(scope="session")
def build_model(teacher_folder: Path):
    """Build a MixedTeacher at 64 pixels, not trained."""
    from anomalib_mixedteacher import MixedTeacher

    def build(**arguments):
        torch.manual_seed(0)
        arguments = {"pre_processor": MixedTeacher.configure_pre_processor((SIZE, SIZE)), **arguments}
        return MixedTeacher(**{"teacher_weights": str(teacher_folder), **arguments})

    return build


@pytest.fixture
def tiny_model(build_model):
    """A MixedTeacher at 64 pixels, not trained."""
    return build_model()


@pytest.fixture
def images() -> torch.Tensor:
    """Four normalised images, (4, 3, 64, 64)."""
    rng = np.random.default_rng(1)
    stack = np.stack([texture(rng, defect=index == 3) for index in range(4)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1
