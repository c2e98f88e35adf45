"""The example of docs/adding-a-model.md works as it stands there."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from anomalib.models import list_models

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    text = (DOCS / "adding-a-model.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    module = ModuleType("example")
    exec(code, module.__dict__)
    module.lines = len(code.splitlines())
    return module


def test_takes_under_150_lines(example):
    assert example.lines < 150


def test_trains_finds_defects_and_restores(example, datamodule, engine, teacher_folder, image_folder):
    build = lambda **arguments: example.PaperStfpm(  # noqa: E731
        str(teacher_folder), pre_processor=example.PaperStfpm.configure_pre_processor((64, 64)), **arguments
    )
    torch.manual_seed(0)
    model = build(layers=(1, 2))
    (metrics,) = engine.train(model=model, datamodule=datamodule)
    assert metrics["image_AUROC"] > 0.8
    assert "paper_stfpm" in list_models()
    other = build()
    expected = engine.predict(model=model, data_path=image_folder / "bad")
    found = engine.predict(model=other, data_path=image_folder / "bad", ckpt_path=engine.best_model_path)
    assert list(other.model_arguments["layers"]) == [1, 2]
    torch.testing.assert_close(found[0].anomaly_map, expected[0].anomaly_map)
