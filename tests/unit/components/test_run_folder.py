"""One folder for a training in several processes, each of which made one."""

from types import SimpleNamespace

from anomalib.utils.path import create_versioned_dir

from anomalib_mixedteacher.components.distillation_mixin import share_run_folder


def test_latest_is_the_first_process_folder(tmp_path):
    folders = [create_versioned_dir(tmp_path), create_versioned_dir(tmp_path)]
    assert (tmp_path / "latest").resolve() == folders[1]
    first = SimpleNamespace(broadcast=lambda own: str(folders[0]))
    for rank, folder in enumerate(folders):
        trainer = SimpleNamespace(default_root_dir=str(folder), strategy=first, is_global_zero=rank == 0)
        share_run_folder(trainer)
    assert trainer._default_root_dir == str(folders[0])
    assert (tmp_path / "latest").resolve() == folders[0]
    assert not folders[1].exists()


def test_a_shared_folder_stays(tmp_path):
    folder = create_versioned_dir(tmp_path)  # of processes that were forked
    strategy = SimpleNamespace(broadcast=lambda own: own)
    for is_first in (True, False):
        share_run_folder(SimpleNamespace(default_root_dir=folder, strategy=strategy, is_global_zero=is_first))
    assert (tmp_path / "latest").resolve() == folder
