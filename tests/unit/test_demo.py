"""The demo goes from nothing to an exported model, and says what it found."""

import importlib
import re
from pathlib import Path

import pytest

from anomalib_mixedteacher import SyntheticTextures
from mixedteacher_edge import EdgeDetector

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("demo")


def test_trains_exports_and_judges(demo, tmp_path, monkeypatch, capsys):
    arguments = f"demo --output {tmp_path} --epochs 2 --images 6 --image-size 64 --category grid"
    monkeypatch.setattr("sys.argv", arguments.split())
    assert demo.main() == 0
    printed = dict(re.findall(r"^  (\w+(?: \w+)?) +(.+)$", capsys.readouterr().out, re.MULTILINE))
    data = SyntheticTextures(root=tmp_path / "data", category="grid", image_size=64, num_train=6, seed=0)
    data.prepare_data()
    data.setup()
    detector, samples = EdgeDetector(printed["exported"], cache=None), data.test_data.samples
    counts = []
    for kind in (0, 1):
        paths = samples.image_path[samples.label_index == kind]
        counts += [sum(detector.predict(path).label for path in paths), len(paths)]
    assert list(map(int, re.findall(r"\d+", printed["OpenVINO"]))) == counts
    assert len(list(Path(printed["heat maps"]).glob("*/*.png"))) == len(samples)


def test_no_epochs_are_refused(demo, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", "--epochs", "0"])
    with pytest.raises(SystemExit):
        demo.main()
    assert "--epochs is 0: give 1 or more." in capsys.readouterr().err
