"""The edge runtime's own distribution: what is in it, and that it runs where neither torch nor anomalib is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import anomalib_mixedteacher
import mixedteacher_edge

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "anomalib", "anomalib_mixedteacher", "torchvision", "lightning", "pandas")
ALONE = """
import sys
class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent)
sys.path.insert(0, %r)
import mixedteacher_edge
assert mixedteacher_edge.__file__.startswith(%r), mixedteacher_edge.__file__
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, str(ROOT / "packaging" / "edge")], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def alone(installed: Path, code: str, absent: tuple[str, ...] = (*ABSENT, "scipy", "skimage")):
    start = ALONE % (absent, str(installed), str(installed))
    # -S leaves the start-up files of this environment out, and the site-packages with them
    packages = f"import sys; sys.path += {[p for p in sys.path if p.endswith('site-packages')]!r}\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", packages + start + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=installed,
    )


def test_both_distributions_have_one_version():
    assert mixedteacher_edge.__version__ == anomalib_mixedteacher.__version__


def test_only_what_the_edge_needs_is_in_it(installed):
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"mixedteacher_edge"}
    assert {path.suffix for path in (installed / "mixedteacher_edge").rglob("*")} == {".py"}
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()
    (metadata,) = installed.glob("*.dist-info/METADATA")
    required = [
        line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert sorted(line.split(": ")[1].split(">")[0] for line in required) == ["numpy", "openvino", "pillow"]


def test_every_module_is_imported_without_torch(installed):
    names = [f"mixedteacher_edge.{path.stem}" for path in (installed / "mixedteacher_edge").glob("*.py")]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))"
    result = alone(installed, code)
    assert result.returncode == 0, result.stderr


def test_an_export_is_calibrated_beside_the_camera(installed, tmp_path):
    """With scipy and scikit-image, without torch and anomalib."""
    code = f"""
import numpy as np, openvino
from openvino import opset13 as ops
from pathlib import Path
from PIL import Image
from mixedteacher_edge import EdgeDetector, ModelRecord, Thresholds
from mixedteacher_edge.__main__ import main
from mixedteacher_edge.graph import RAW_MAP, RAW_SCORE, with_thresholds, write_model
folder = Path({str(tmp_path)!r})
image = ops.parameter([-1, 3, -1, -1], np.float32)
anomaly_map = ops.reduce_mean(image, np.array([1]), keep_dims=True)
score = ops.reduce_max(anomaly_map, np.array([1, 2, 3]), keep_dims=False)
for node, name, friendly in ((score, "pred_score", RAW_SCORE), (anomaly_map, "anomaly_map", RAW_MAP)):
    node.output(0).set_names({{name}})
    node.set_friendly_name(friendly)
network = openvino.Model([ops.result(score), ops.result(anomaly_map)], [image], "tiny")
thresholds = Thresholds(0.9, 0.8)
write_model(with_thresholds(network, thresholds), ModelRecord("Tiny", "0", "FP32"), folder / "m.xml")
(folder / "good").mkdir()
for index in range(19):
    values = np.random.default_rng(index).integers(0, 5 * index + 10, (40, 40, 3), np.uint8)
    values[:8] = 5 * index + 10
    Image.fromarray(values).save(folder / "good" / f"{{index:02}}.png")
assert main(["calibrate", str(folder / "m.xml"), "--good", str(folder / "good")]) == 0
detector = EdgeDetector(folder / "m-calibrated.xml", cache=None)
Image.fromarray(np.full((40, 40, 3), 120, np.uint8)).save(folder / "brighter.png")
assert detector.predict(folder / "brighter.png").label
assert not detector.predict(folder / "good" / "17.png").label
assert main(["calibrate", "m.ckpt", "--good", "."]) == 1
"""
    result = alone(installed, code, ABSENT)
    assert result.returncode == 0, result.stderr
    assert "19 good images, budget 0.05" in result.stdout
    assert "m.ckpt is no exported model (.xml): install anomalib-mixedteacher" in result.stderr
