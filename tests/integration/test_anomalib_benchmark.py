"""``anomalib benchmark`` with MixedTeacher beside anomalib's own models, and the package's comparison."""

import json
import sys
from functools import partial

import pandas as pd
import pytest
import torch
import yaml
from anomalib.engine import Engine
from anomalib.pipelines import Benchmark
from anomalib_mixedteacher.benchmark.peers import build_peer, load_peer_teacher, no_download
from jsonargparse import Namespace

from anomalib_mixedteacher.benchmark import cell, compare
from anomalib_mixedteacher.components import FeatureExtractor
from anomalib_mixedteacher.components.weights import load_teacher_weights
from anomalib_mixedteacher.errors import ConfigurationError, WeightsError

TINY = {"image_size": 64, "num_train": 4, "num_test_good": 4, "num_defects_per_kind": 1}


def test_benchmark_beside_patchcore_and_stfpm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = partial(Engine, max_epochs=1, enable_progress_bar=False)  # anomalib's job would train Stfpm for 1000 epochs
    monkeypatch.setattr("anomalib.pipelines.benchmark.job.Engine", short)
    models = ["Patchcore", "Stfpm", "MixedTeacher", "Msfd", "Mkd"]
    config = {
        "accelerator": "cpu",
        "benchmark": {
            "seed": 0,
            "model": {"class_path": {"grid": models}},
            "data": {"class_path": "SyntheticTextures", "init_args": {"root": str(tmp_path / "data"), **TINY}},
        },
    }
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
    with no_download():  # "pretrained" networks without weights: what they find is not the point here
        Benchmark().run(Namespace(config=tmp_path / "benchmark.yaml"))
    log = (tmp_path / "runs" / "pipeline.log").read_text()
    assert "Traceback" not in log, log
    table = pd.read_csv(next(tmp_path.rglob("results.csv")))
    assert sorted(table["model.class_path"]) == sorted(models)
    assert table["image_AUROC"].between(0, 1).all()


def test_compare_trains_all_models_on_one_split_with_one_teacher(tmp_path, teacher_folder, monkeypatch, capsys):
    monkeypatch.setattr(cell, "SyntheticTextures", partial(cell.SyntheticTextures, root=tmp_path, **TINY))
    output = tmp_path / "results.jsonl"
    arguments = ["compare", "--teacher-weights", str(teacher_folder), "--image-size", "64", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--fusions", "sum", "product", "--output", str(output)])
    assert compare.main() == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["model"], row["arguments"].get("fusion")) for row in rows] == [
        ("MixedTeacher", "sum"),
        ("MixedTeacher", "product"),
        ("Stfpm", None),
        ("Patchcore", None),
    ]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("image_AUROC", "pixel_AUROC"))
    assert "| MixedTeacher fusion=sum |" in capsys.readouterr().out


def test_compare_names_a_wrong_weights_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell, "SyntheticTextures", partial(cell.SyntheticTextures, root=tmp_path, **TINY))
    arguments = ["--teacher-weights", str(tmp_path), "--image-size", "64", "--models", "Stfpm", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    assert compare.main() == 1
    assert "has no resnet18.safetensors" in capsys.readouterr().err


def test_unknown_peer():
    with pytest.raises(ConfigurationError, match="No peer 'Padim'; choose one of Stfpm, Patchcore"):
        build_peer("Padim")


@pytest.mark.parametrize("name", ["Stfpm", "Patchcore"])
def test_peers_take_the_texture_teacher_as_far_as_it_goes(name):
    model = build_peer(name, layers=["layer1", "layer2"])
    load_peer_teacher(model, "texture", torch.zeros(0))
    extractor = model.model.teacher_model if name == "Stfpm" else model.model.feature_extractor
    net = FeatureExtractor("resnet18", (1, 2)).net
    net.load_state_dict(load_teacher_weights("resnet18", "texture", net))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net.eval()(images)
        found = list(extractor.eval()(images).values())
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours)


def test_peers_with_deeper_layers_are_refused():
    with pytest.raises(WeightsError, match="ends at layer 2, but layer 3 is asked for"):
        load_peer_teacher(build_peer("Stfpm"), "texture", torch.zeros(0))
