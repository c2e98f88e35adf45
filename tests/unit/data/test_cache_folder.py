"""Where generated images are kept, with and without a home directory."""

from pathlib import Path

import pytest

from anomalib_mixedteacher.data.synthetic_textures import CACHE_VARIABLE, cache_folder
from anomalib_mixedteacher.errors import DataError


@pytest.fixture
def homeless(monkeypatch):
    """A container's user: no variable, and no entry among the system's users."""

    def unknown(number):
        raise KeyError(f"uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_a_named_folder_needs_no_home(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "anomalib_mixedteacher" / "synthetic_textures"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "synthetic_textures"


def test_without_any_the_variable_is_named(homeless, monkeypatch):
    with pytest.raises(DataError, match=f"no home directory .*: name another place by {CACHE_VARIABLE}"):
        cache_folder()
    monkeypatch.setenv(CACHE_VARIABLE, "~/cache")
    with pytest.raises(DataError, match=CACHE_VARIABLE):
        cache_folder()


def test_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "~/cache")
    assert cache_folder() == Path.home() / "cache" / "synthetic_textures"
