"""Comparison: table over seeds, pooled kinds, and what is finished is not run again."""

import argparse
import json
import re
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
    monkeypatch.setattr(sys, "argv", [*command, str(output), "--pool", "stain"])
    assert compare.main() == 0
    assert len(calls) == 7
    monkeypatch.setattr(sys, "argv", [*command, str(output), "--seeds", "0", "--epochs", "7"])
    assert compare.main() == 0
    assert len(calls) == 9


@pytest.fixture
def calls(monkeypatch):
    """What is trained, were it trained."""
    calls = []

    def run(name, data, weights, settings, seed, **arguments):
        calls.append((data, settings.root))
        described = compare.describe(data, weights, settings, seed)
        return [{"model": name, "arguments": arguments, **described, "image_AUROC": 0.5}]

    monkeypatch.setattr(compare, "run", run)
    return calls


def run_compare(monkeypatch, output, *arguments):
    command = ["compare", "--models", "Stfpm", "--teacher-weights", "random", "--output", str(output), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    return compare.main()


def test_another_root_is_another_row(tmp_path, monkeypatch, calls, capsys):
    output = tmp_path / "rows.jsonl"
    roots = [tmp_path / name for name in "ab"]
    monkeypatch.chdir(tmp_path)
    for root in [roots[0], roots[0], "a", "b/../a", roots[1]]:
        assert run_compare(monkeypatch, output, "--data", "MagneticTile", "weave", "--root", str(root)) == 0
    # the textures do not come from the folder
    assert calls == [("MagneticTile", str(roots[0])), ("weave", str(roots[0])), ("MagneticTile", str(roots[1]))]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table
    assert str(tmp_path) not in "".join(table)


def test_results_of_another_version_are_not_taken_and_named(tmp_path, monkeypatch, calls, capsys):
    output = tmp_path / "rows.jsonl"
    arguments = ["--image-size", "64", "--epochs", "1", "--data", "weave"]
    old = [row(seed=0), row(seed=1) | {"version": "0.3.0"}, row("Msfd") | {"version": "0.3.0"}]
    output.write_text("".join(json.dumps(line) + "\n" for line in old))
    for _ in range(2):
        assert run_compare(monkeypatch, output, *arguments, "--seeds", "0", "1") == 0
    assert len(calls) == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"compare: Stfpm on weave is trained anew: its result is version {v}'s." for v in ("unknown", "0.3.0")
    ]
    assert len(output.read_text().splitlines()) == 5


@pytest.mark.parametrize("cut", [1, 40, -1, None])
def test_what_is_left_of_a_result_is_dropped(tmp_path, monkeypatch, calls, capsys, cut):
    output = tmp_path / "rows.jsonl"
    assert run_compare(monkeypatch, output, "--seeds", "0", "1") == 0
    whole = output.read_text()
    first, second = whole.splitlines()
    output.write_text(f"{first}\n{second[:cut]}")
    capsys.readouterr()
    assert run_compare(monkeypatch, output, "--seeds", "0", "1") == 0
    assert output.read_text() == whole
    assert len(calls) == (2 if cut is None else 3)
    assert ("in the middle of a result" in capsys.readouterr().err) is (cut is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"mod\n{"model": "a", "arguments": {}, "data": "weave"}\n', "Line 1 of .* is no result .*: remove the line"),
        (b'{"model": "a", "arguments": {}, "data": "weave"}\n# Notes\n', "Line 2 of .* is no result"),
        (b"# Notes", "Line 1 of .* is no result"),
        (b"[1]\n", "Line 1 of .* is no result"),
        (b"\xff\xfe", "Cannot read .* give a file of this command's results"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, monkeypatch, calls, capsys, content, sentence):
    output = tmp_path / "rows.jsonl"
    output.write_bytes(content)
    assert run_compare(monkeypatch, output) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, told)
    assert output.read_bytes() == content
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--pool", "stain", "hoel"],
            "SyntheticTextures has no defects called hoel: give --pool some of scratch, stain",
        ),
        (["--data", "MagneticTile", "--pool", "creak"], "MagneticTile has no defects called creak: .* blowhole, break"),
        (["--data", "MagneticTile", "weave", "--pool", "crack"], "weave has no defects called crack"),
    ],
)
def test_kinds_that_a_data_set_has_not_are_refused(tmp_path, monkeypatch, calls, capsys, arguments, sentence):
    assert run_compare(monkeypatch, tmp_path / "rows.jsonl", *arguments) == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert not calls


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
