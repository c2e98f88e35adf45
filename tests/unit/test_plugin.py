"""The start-up hook and the registration."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECK = """
from anomalib.models import get_model, list_models
import anomalib.data
assert "mixed_teacher" in list_models(), sorted(list_models())
for name in ("MixedTeacher", "mixed_teacher"):
    assert type(get_model(name)).__name__ == "MixedTeacher"
for path in ("MixedTeacher", "anomalib.models.MixedTeacher", "anomalib_mixedteacher.MixedTeacher"):
    model = get_model({"class_path": path, "init_args": {"fusion": "product"}})
    assert model.model.anomaly_map_generator.fusion == "product", path
assert anomalib.data.get_datamodule({"class_path": "SyntheticTextures"}).name == "SyntheticTextures"
print("registered")
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_a_plain_process_knows_the_models():
    result = python(CHECK)
    assert result.stdout.strip() == "registered", result.stderr
    assert "could not register" not in result.stderr


def test_a_data_loaders_own_process_reads_sixteen_bits(tmp_path):
    """One that is spawned, as on Windows, imports the data sets and neither the models nor this package."""
    (tmp_path / "good").mkdir()
    values = np.linspace(5_000, 40_000, 64 * 64).reshape(64, 64).astype(np.uint16)
    for index in range(2):
        Image.fromarray(values).save(tmp_path / "good" / f"{index}.png")
    script = tmp_path / "script.py"
    script.write_text(
        "if __name__ == '__main__':\n"
        "    from anomalib.data import Folder\n"
        "    from torch.utils.data import DataLoader\n"
        f"    folder = Folder('deep', root={str(tmp_path)!r}, normal_dir='good', test_split_mode='none',\n"
        "                    val_split_mode='none')\n"
        "    folder.setup()\n"
        "    loader = DataLoader(folder.train_data, num_workers=1, multiprocessing_context='spawn',\n"
        "                        collate_fn=folder.train_data.collate_fn)\n"
        "    image = next(iter(loader)).image\n"
        "    print(image.min().item(), image.max().item())\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    low, high = map(float, result.stdout.split())
    assert (low, high) == pytest.approx((5_000 / 65_535, 40_000 / 65_535))


@pytest.mark.parametrize(
    "first",
    ["components.maps", "data", "models", "benchmark.training"],
)
def test_any_part_can_be_imported_first(first):
    result = python(
        f"import anomalib_mixedteacher.{first}; "
        "from anomalib.models import list_models; print('mixed_teacher' in list_models())"
    )
    assert result.stdout.strip() == "True", result.stderr
    assert "could not register" not in result.stderr


def test_importing_the_package_imports_nothing_heavy():
    result = python(
        "import sys, anomalib_mixedteacher as p; assert p.__version__; assert 'MixedTeacher' in dir(p); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'anomalib', 'numpy', 'timm', 'lightning'}))"
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_hook_is_light_and_can_be_switched_off():
    heavy = "{'torch', 'anomalib', 'numpy', 'anomalib_mixedteacher'}"
    on = "any(f.__module__ == '_anomalib_mixedteacher_startup' for f in sys.meta_path if isinstance(f, type))"
    result = python(f"import sys; print({on}, sorted({heavy} & set(sys.modules)))")
    assert result.stdout.strip() == "True []", result.stderr
    result = python(f"import sys; print({on})", ANOMALIB_MIXEDTEACHER_PLUGIN="0")
    assert result.stdout.strip() == "False", result.stderr


def test_without_the_hook_importing_a_model_registers_it():
    code = (
        "from anomalib_mixedteacher import MixedTeacher; from anomalib.models import list_models; "
        "print('mixed_teacher' in list_models())"
    )
    result = python(code, ANOMALIB_MIXEDTEACHER_PLUGIN="0")
    assert result.stdout.strip() == "True", result.stderr


def test_a_broken_plugin_is_a_warning_and_anomalib_works():
    code = (
        "import sys; sys.modules['anomalib_mixedteacher.plugin'] = None\n"  # importing it now fails
        "from anomalib.models import list_models; print('padim' in list_models())"
    )
    result = python(code)
    assert result.stdout.strip() == "True", result.stderr
    assert "could not register its models" in result.stderr


def test_a_broken_package_leaves_the_interpreter_working(tmp_path):
    (tmp_path / "_anomalib_mixedteacher_startup.py").write_text("raise RuntimeError('broken')")
    line = Path(__file__).parents[2].joinpath("src/anomalib_mixedteacher.pth").read_text()
    result = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        f"sys.modules.pop('_anomalib_mixedteacher_startup', None); exec({line!r}); print('alive')"
    )
    assert result.stdout.strip() == "alive"
    assert "start-up hook not installed: RuntimeError('broken')" in result.stderr


def test_the_wheel_holds_the_start_up_file_the_teachers_and_no_tests(tmp_path):
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {"anomalib_mixedteacher.pth", "_anomalib_mixedteacher_startup.py"} <= set(names)
    assert "anomalib_mixedteacher/models/mixed_teacher/torch_model.py" in names
    teachers = [Path(name).name for name in names if name.startswith("anomalib_mixedteacher/teachers/")]
    assert sorted(teachers) == ["manifest.json", "resnet18.safetensors"]
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert not any(name.startswith("tests") for name in names)


def test_unknown_attribute():
    import anomalib_mixedteacher

    with pytest.raises(AttributeError, match="has no attribute 'MixedTeachr'"):
        anomalib_mixedteacher.MixedTeachr  # noqa: B018


def test_anomalib_command_takes_the_short_names():
    """A whole ``anomalib`` process: it prints the configuration it has parsed, and ends."""
    command = Path(sys.executable).with_name("anomalib")
    arguments = ["train", "--model", "MixedTeacher", "--model.fusion", "product", "--data", "SyntheticTextures"]
    result = subprocess.run([command, *arguments, "--print_config"], capture_output=True, text=True, check=False)
    assert "MixedTeacher" in result.stdout, result.stderr
    assert "fusion: product" in result.stdout
    assert "SyntheticTextures" in result.stdout
