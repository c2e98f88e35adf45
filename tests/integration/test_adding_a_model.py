"""The example of docs/adding-a-model.md works as it stands there."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from anomalib.models import list_models

from anomalib_mixedteacher.errors import ConfigurationError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-model.md"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("example")
    exec(code, module.__dict__)
    return module


def test_trains_finds_defects_and_restores(example, datamodule, make_engine, image_folder):
    engine = make_engine(max_epochs=5)
    model = example.PaperStfpm(layers=(1,), image_size=(64, 64))
    (metrics,) = engine.train(model=model, datamodule=datamodule)
    assert metrics["image_AUROC"] > 0.8
    assert "paper_stfpm" in list_models()
    checkpoint = engine.best_model_path
    expected = engine.predict(model=model, data_path=image_folder / "bad")
    found = engine.predict(model=example.PaperStfpm.load_from_checkpoint(checkpoint), data_path=image_folder / "bad")
    torch.testing.assert_close(found[0].anomaly_map, expected[0].anomaly_map)
    with pytest.raises(ConfigurationError, match=r"trained with layers=\(1,\)"):
        engine.predict(model=example.PaperStfpm(), data_path=image_folder / "bad", ckpt_path=checkpoint)
