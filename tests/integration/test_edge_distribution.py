"""The edge runtime's own distribution: what is in it, and that it runs where neither torch nor anomalib is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALONE = """
import sys
class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "anomalib", "torchvision", "lightning", "pandas", "scipy", "skimage"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent)
sys.path.insert(0, %r)
import anomalib_mixedteacher
assert anomalib_mixedteacher.__file__.startswith(%r), anomalib_mixedteacher.__file__
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT / "packaging" / "edge", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def alone(installed: Path, code: str) -> subprocess.CompletedProcess:
    start = ALONE % (str(installed), str(installed))
    # -S leaves the start-up files of this environment out, and the site-packages with them
    packages = f"import sys; sys.path += {[p for p in sys.path if p.endswith('site-packages')]!r}\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", packages + start + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=installed,
    )


def test_only_what_the_edge_needs_is_in_it(installed):
    names = {path.relative_to(installed / "anomalib_mixedteacher").parts[0] for path in installed.rglob("*.py")}
    assert names == {"__init__.py", "cache_folder.py", "cli.py", "decoding.py", "errors.py", "edge", "calibration"}
    assert not list(installed.rglob("*.pth"))
    (metadata,) = installed.glob("*.dist-info/METADATA")
    required = [
        line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert sorted(line.split(": ")[1].split(">")[0] for line in required) == ["numpy", "openvino", "pillow"]


def test_every_module_is_imported_without_torch(installed):
    modules = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in (installed / "anomalib_mixedteacher").rglob("*.py")
    ]
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint(len({modules!r}))"
    result = alone(installed, code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(modules) > 10


def test_training_is_refused_in_one_sentence(installed):
    result = alone(installed, "from anomalib_mixedteacher.cli import main; raise SystemExit(main(['train']))")
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "mixedteacher: train needs anomalib, which is not installed: install anomalib-mixedteacher itself."
    )
