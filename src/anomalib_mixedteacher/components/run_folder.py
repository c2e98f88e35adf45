"""The folder of a training that several processes share."""

from contextlib import suppress
from pathlib import Path

from lightning import Trainer


def share_run_folder(trainer: Trainer) -> None:
    """Let all write to the first process's folder, in which the checkpoint will be, and ``latest`` be that one.

    With the strategy ``ddp`` each process runs the whole program, and anomalib's Engine makes a new folder in each.
    It ends when the Engine does so in one of them.
    """
    folder = Path(trainer.default_root_dir)
    first = Path(trainer.strategy.broadcast(str(folder)))
    latest = folder.parent / "latest"
    if folder != first:
        with suppress(OSError):  # somebody else's files are in it
            folder.rmdir()
        trainer._default_root_dir = str(first)  # type: ignore[attr-defined]  # heat maps go there too
    elif trainer.is_global_zero and latest.is_symlink() and latest.resolve() != folder.resolve():
        latest.unlink()
        latest.symlink_to(folder, target_is_directory=True)
