"""Writing an exported model and its record so that no half of it is ever found in place."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import openvino

from anomalib_mixedteacher.edge.record import ModelRecord, record_path, sha256


def write_model(model: openvino.Model, record: ModelRecord, path: Path, compress_to_fp16: bool = False) -> Path:
    """Write a model, its weights and its record.

    All is written to a folder of its own first. The old ``.xml`` goes before the new weights come, and the new one
    comes last, so that whenever the process is killed there is a model that belongs together, or none.

    Args:
        model: The graph.
        record: Its record; the files' checksums are filled in.
        path: The ``.xml`` file to write; ``.bin`` and record go beside it.
        compress_to_fp16: Store the weights in half the space.

    Returns:
        ``path``.
    """
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    try:
        xml, weights = folder / path.name, folder / path.with_suffix(".bin").name
        openvino.save_model(model, xml, compress_to_fp16=compress_to_fp16)
        files = {file.name: sha256(file) for file in (xml, weights)}
        noted = folder / record_path(path).name
        noted.write_text(replace(record, files=files).text())
        path.unlink(missing_ok=True)
        weights.replace(path.with_suffix(".bin"))
        noted.replace(record_path(path))
        xml.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path
