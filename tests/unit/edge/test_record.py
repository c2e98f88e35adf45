"""The record beside a model: written and read back, and each way in which it cannot be trusted."""

import json

import pytest

from mixedteacher_edge import ModelRecord
from mixedteacher_edge.errors import ExportedModelError
from mixedteacher_edge.record import check_files, read_record, record_path
from mixedteacher_edge.thresholds import Thresholds

from .conftest import save_model, write_record


def change(model, **values):
    path = record_path(model)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_read_back(model):
    thresholds = Thresholds(1.5, 2.5, 0.2, 1, (0.1, 0.2), (0.3, 0.4))
    write_record(model, quality={"image_AUROC": 0.9}, thresholds=thresholds)
    record = read_record(model)
    assert isinstance(record, ModelRecord)
    assert record.image_size == (48, 40)
    assert record.quality == {"image_AUROC": 0.9}
    assert record.thresholds == thresholds
    assert set(record.files) == {"model.xml", "model.bin"}


def test_entries_of_a_later_version_are_passed_over(model):
    change(model, color="blue")
    assert read_record(model).model == "Tiny"


def test_names(tmp_path):
    assert record_path(tmp_path / "model.xml").name == "metadata.json"
    other = save_model(tmp_path / "other.xml")
    assert (tmp_path / "other.metadata.json").exists()
    assert read_record(other).model == "Tiny"


def test_no_record(tmp_path):
    assert read_record(save_model(tmp_path / "model.xml", record=False)) is None


def test_another_format(model):
    change(model, format=1)
    with pytest.raises(ExportedModelError, match="written by another version of this package: update the package"):
        read_record(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 2, "files": {}, "thresholds": 3}'])
def test_no_record_at_all(model, text):
    record_path(model).write_text(text)
    with pytest.raises(ExportedModelError, match="no record of an exported model, or a damaged one: copy the folder"):
        read_record(model)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_another_file_or_none(model, suffix):
    record = read_record(model)
    check_files(record, model)
    file = model.with_suffix(suffix)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ExportedModelError, match=f"{file.name} is not the file that metadata.json was written for"):
        check_files(record, model)
