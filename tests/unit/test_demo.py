"""The demo measures the weights that it exports."""

import pytest
import torch
from anomalib.engine import Engine

from anomalib_mixedteacher import demo


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_exported_weights_are_the_tested_ones(tmp_path, monkeypatch):
    seen = {}
    test = Engine.test

    def look_and_test(self, model, **arguments):
        seen["tested"] = state(model)
        return test(self, model=model, **arguments)

    class EnoughError(Exception):
        pass

    def look_and_end(self, model, **arguments):
        seen["exported"] = state(model)
        raise EnoughError

    monkeypatch.setattr(Engine, "test", look_and_test)
    monkeypatch.setattr(Engine, "export", look_and_end)
    arguments = f"demo --output {tmp_path} --epochs 6 --images 4 --image-size 64 --teacher-weights random"
    monkeypatch.setattr("sys.argv", arguments.split())
    with pytest.raises(EnoughError):
        demo.main()
    assert seen["tested"].keys() == seen["exported"].keys()
    assert not [name for name, value in seen["tested"].items() if not value.equal(seen["exported"][name])]


@pytest.mark.parametrize(("epochs", "interval"), [(1, 1), (3, 3), (5, 5), (6, 3), (7, 1), (8, 4), (15, 5), (100, 5)])
def test_the_last_epoch_is_validated(epochs, interval):
    assert demo._validation_interval(epochs) == interval


def test_no_epochs_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", "--epochs", "0"])
    with pytest.raises(SystemExit):
        demo.main()
    assert "--epochs is 0: give 1 or more." in capsys.readouterr().err
