"""Comparison: table over seeds, pooled kinds, and what is finished is not run again."""

import argparse
import json
import sys

import pytest
import torch

from anomalib_mixedteacher.benchmark import compare
from anomalib_mixedteacher.benchmark.scores import Predictions, summarize


def row(model="Stfpm", seed=0, weights="random", auroc=0.5, **arguments):
    return {
        "model": model, "arguments": arguments, "data": "weave", "image_size": 64, "teacher_weights": weights,
        "epochs": 1, "peer_layers": None, "seed": seed, "image_AUROC": auroc, "train_seconds": 3,
    }  # fmt: skip


def test_table_has_mean_and_spread_over_seeds():
    rows = [row(seed=seed, auroc=auroc) for seed, auroc in enumerate((0.5, 0.6, 0.7))]
    rows.append(row("MixedTeacher", weights="folder/texture", auroc=0.9, fusion="sum"))
    assert compare.markdown(rows).splitlines() == [
        "| model | teachers | seeds | image_AUROC |",
        "| --- | --- | --- | --- |",
        "| Stfpm | random | 3 | 0.600 ± 0.100 |",
        "| MixedTeacher fusion=sum | texture | 1 | 0.900 |",
    ]


def test_pooled_kinds_leave_the_others_out():
    kinds = ["good", "good", "crack", "hole", "stain"]
    scores = torch.tensor([0.1, 0.3, 0.4, 0.2, 0.0])
    labels = torch.tensor([0, 0, 1, 1, 1])
    found = summarize(
        Predictions(scores, scores[:, None, None], labels, labels[:, None, None], kinds), ["crack", "hole"]
    )
    assert found["crack+hole"] == pytest.approx(3 / 4)
    assert found["image_AUROC"] == pytest.approx(3 / 6)
    assert found["stain"] == 0


def test_finished_rows_are_not_run_again(tmp_path, monkeypatch, capsys):
    calls = []

    def run(name, data, weights, settings, seed, **arguments):
        calls.append((name, weights, seed))
        described = compare.describe(data, weights, settings, seed)
        return [{"model": name, "arguments": arguments, **described, "image_AUROC": 0.5}]

    monkeypatch.setattr(compare, "run", run)
    output = tmp_path / "rows.jsonl"
    command = ["compare", "--models", "Stfpm", "Patchcore:num_neighbors=3", "--teacher-weights", "random", "--output"]
    monkeypatch.setattr(sys, "argv", [*command, str(output), "--seeds", "0", "1"])
    assert compare.main() == 0
    assert len(calls) == 4
    lines = output.read_text().splitlines()
    output.write_text("\n".join(lines[:3]) + "\n")  # as if it had been interrupted
    first = capsys.readouterr().out.splitlines()[-4:]
    assert compare.main() == 0
    assert calls[4:] == [("Patchcore", "random", 1)]
    assert capsys.readouterr().out.splitlines()[-4:] == first
    assert sorted(output.read_text().splitlines()) == sorted(lines)
    assert json.loads(lines[1])["arguments"] == {"num_neighbors": 3}
    # other settings are other rows
    monkeypatch.setattr(sys, "argv", [*command, str(output), "--pool", "crack"])
    assert compare.main() == 0
    assert len(calls) == 7
    monkeypatch.setattr(sys, "argv", [*command, str(output), "--seeds", "0", "--epochs", "7"])
    assert compare.main() == 0
    assert len(calls) == 9


def test_another_fusion_is_another_row():
    settings = argparse.Namespace(maps=[], fusions=["sum", "product"], pool=[])
    rows = [row("MixedTeacher", fusion="product"), row("MixedTeacher", fusion="normalized_product")]
    wanted = {"model": "MixedTeacher", "seed": 0}
    assert compare._results(rows, wanted, {}, settings) == []
    rows.append(row("MixedTeacher", fusion="sum"))
    assert [found["arguments"]["fusion"] for found in compare._results(rows, wanted, {}, settings)] == [
        "sum",
        "product",
    ]
    assert compare._results(rows, wanted, {"sigma": 2}, settings) == []


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("MixedTeacher:student_init=teacher", "write key=value,... with strings in quotes"),
        ('MixedTeacher:fusion="sum"', "Give fusions as --fusions"),
    ],
)
def test_wrong_model_arguments(model, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "--models", model])
    assert compare.main() == 1
    assert sentence in capsys.readouterr().err
