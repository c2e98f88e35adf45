"""The record beside a model: written and read back, and each way in which it cannot be trusted."""

import json

import pytest

from anomalib_mixedteacher.edge import ModelRecord
from anomalib_mixedteacher.edge.record import Calibration, read_record, record_path
from anomalib_mixedteacher.errors import ExportedModelError

from .conftest import save_model, write_record


def change(model, **values):
    path = record_path(model)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_read_back(model):
    write_record(model, quality={"image_AUROC": 0.9}, thresholds={"image": 1.5, "pixel": 2.5})
    record = read_record(model)
    assert isinstance(record, ModelRecord)
    assert record.image_size == (48, 40)
    assert record.calibration == Calibration(0.2, 1, [0.1, 0.2, 0.3, 0.4])
    assert record.quality == {"image_AUROC": 0.9}
    assert record.thresholds == {"image": 1.5, "pixel": 2.5}
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
    change(model, format=2)
    with pytest.raises(ExportedModelError, match="written by another version of this package: update the package"):
        read_record(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "calibration": 3}'])
def test_no_record_at_all(model, text):
    record_path(model).write_text(text)
    with pytest.raises(ExportedModelError, match="no record of an exported model, or a damaged one: copy the folder"):
        read_record(model)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_another_file_or_none(model, suffix):
    file = model.with_suffix(suffix)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ExportedModelError, match=f"{file.name} is not the file that metadata.json was written for"):
        read_record(model)
    file.unlink()
    with pytest.raises(ExportedModelError, match=f"The model's file .*{file.name} is missing: copy the folder again"):
        read_record(model)
