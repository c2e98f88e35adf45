"""anomalib's own benchmark pipeline takes this package's models."""

from functools import partial

import pandas as pd
import yaml
from anomalib.engine import Engine
from anomalib.pipelines import Benchmark
from jsonargparse import Namespace

TINY = {"image_size": 64, "num_train": 4, "num_test_good": 4, "num_defects_per_kind": 1}


def test_anomalibs_benchmark_takes_these_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = partial(Engine, max_epochs=1, enable_progress_bar=False)  # anomalib's job would train for 1000 epochs
    monkeypatch.setattr("anomalib.pipelines.benchmark.job.Engine", short)
    models = ["MixedTeacher", "Msfd"]
    config = {
        "accelerator": "cpu",
        "benchmark": {
            "seed": 0,
            "model": {"class_path": {"grid": models}, "init_args": {"teacher_weights": "random"}},
            "data": {"class_path": "SyntheticTextures", "init_args": {"root": str(tmp_path / "data"), **TINY}},
        },
    }
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
    Benchmark().run(Namespace(config=tmp_path / "benchmark.yaml"))
    log = (tmp_path / "runs" / "pipeline.log").read_text()
    assert "Traceback" not in log, log
    table = pd.read_csv(next(tmp_path.rglob("results.csv")))
    assert sorted(table["model.class_path"]) == models
    assert table["image_AUROC"].between(0, 1).all()
