"""``mixedteacher benchmark``: models x data sets x categories x seeds, trained, measured and kept.

A benchmark that was interrupted goes on where it stopped when the same command is given again. ``mixedteacher benchmark
speed`` measures exported models alone.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalib_mixedteacher.benchmark.arguments import parse_arguments
from anomalib_mixedteacher.benchmark.plan import ALL, Plan, parse_plan, read_plan
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError

_INTERRUPTED = 130
_GOOD, _BAD, _MASK = "good", "bad", "mask"
_DEFAULT_MODELS = ["MixedTeacher", "Stfpm", "Patchcore"]
_EPILOG = """Without a file, name models and data: --data SyntheticTextures/weave MagneticTile --root FOLDER, or
--folder FOLDER for your own images (FOLDER/good, and FOLDER/bad and FOLDER/mask if there are any, or one such folder
for each category). The folder of results may be given to 'mixedteacher report'. Patchcore needs several GB while it is
fitted: leave the environment variables MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ unset."""


def main(arguments: Sequence[str]) -> int:
    """Run ``mixedteacher benchmark``.

    Args:
        arguments: What stands behind the command's name.

    Returns:
        Exit status: 0, or 1 if a cell failed, or 130 after an interruption.

    Raises:
        ConfigurationError: If there is nothing to compare, or the plan cannot be understood.
        DataError: If a folder's masks are not those of its images, or the magnetic tiles are not there.
    """
    if arguments[:1] == ["speed"]:
        from anomalib_mixedteacher.benchmark import speed

        speed.main(arguments)
        return 0
    settings = _parser().parse_args(arguments)
    plan = _plan(settings)
    if settings.jobs < 1:
        msg = f"--jobs is {settings.jobs}: give a whole number from 1 on."
        raise ConfigurationError(msg)
    return run(plan, RunFolder(settings.output), settings.jobs)


def run(plan: Plan, folder: RunFolder, jobs: int = 1) -> int:
    """Run a benchmark, or what is left of it, and print its tables.

    Args:
        plan: What to compare.
        folder: Where to keep the outcome.
        jobs: How many cells to train at a time.

    Returns:
        Exit status, as of :func:`main`.

    Raises:
        ConfigurationError: If a model or data set cannot be had, or the folder or the accelerators cannot take it.
        DataError: If the magnetic tiles are not there, or not whole.
    """
    # imports torch and anomalib, which a wrong plan need not wait for
    from anomalib_mixedteacher.benchmark.build import build_data, check_model, check_tiles
    from anomalib_mixedteacher.benchmark.export_speed import known_speed, measure_speed
    from anomalib_mixedteacher.benchmark.runner import check_jobs, run_cells
    from anomalib_mixedteacher.benchmark.tables import write_tables

    check_jobs(jobs)
    cells = plan.cells()
    for cell in cells:  # what can be known to fail is known before hours of training
        check_model(cell.class_path)
        build_data(cell.data_class, cell.data_args, cell.seed, cell.batch)
        if not folder.is_finished(cell):  # tables of what is finished can do without the images
            check_tiles(cell.data_class, cell.data_args)
    with folder.lock():
        folder.write(folder.plan, plan.to_yaml())
        folder.set_cells(cells)
        try:
            run_cells(folder, cells, jobs)
            tables = write_tables(folder, known_speed(folder))  # there even if timing breaks
            if folder.results():
                tables = write_tables(folder, measure_speed(folder))
        except KeyboardInterrupt:
            print("mixedteacher: interrupted; give the same command again to go on.", file=sys.stderr)
            return _INTERRUPTED
    print(f"\n{tables}")
    print(f"results  {folder.path}: table.md, table.csv, table.json; 'mixedteacher report {folder.path}' shows them")
    return 1 if folder.failures() else 0


def _plan(settings: argparse.Namespace) -> Plan:
    """Take the plan's file, or what the command line says in its place; the command line's numbers go first."""
    given = {
        name: getattr(settings, name)
        for name in ("seeds", "teacher_weights", "image_size", "epochs", "alarm_rate")
        if getattr(settings, name) is not None
    }
    if settings.plan is not None:
        if named := [f"--{name}" for name in ("models", "data", "folder") if getattr(settings, name)]:
            msg = f"{settings.plan} names models and data: leave {', '.join(named)} out."
            raise ConfigurationError(msg)
        plan = replace(read_plan(settings.plan), **given)
        return plan if settings.root is None else _with_root(plan, settings.root, settings.plan)
    if bool(settings.data) == bool(settings.folder):
        msg = "Give a benchmark's YAML file, or --data, or --folder: one of them."
        raise ConfigurationError(msg)
    data = [_folder(settings.folder)] if settings.folder else [_data(text, settings.root) for text in settings.data]
    models = [_model(text) for text in settings.models or _DEFAULT_MODELS]
    return parse_plan({"models": models, "data": data, **given}, "the command line")


def _with_root(plan: Plan, root: Path, where: Path) -> Plan:
    """Take another folder for the data sets that name one; generated textures name only where they are kept."""
    rooted = [e for e in plan.data if "root" in e.init_args and e.class_path.rpartition(".")[2] != "SyntheticTextures"]
    if len({str(entry.init_args["root"]) for entry in rooted}) != 1:
        problem = "have several folders" if rooted else "have no root among their init_args"
        msg = f"The data sets of {where} {problem}: leave --root out, or change the file."
        raise ConfigurationError(msg)
    init_args = {"root": str(root)}
    return replace(plan, data=[replace(e, init_args=e.init_args | init_args) if e in rooted else e for e in plan.data])


def _model(text: str) -> dict[str, Any]:
    """Read ``NAME`` or ``NAME:key=value,...``; the arguments make the name for tables."""
    name, _, pairs = text.partition(":")
    if not pairs:
        return {"class_path": name}
    return {"class_path": name, "init_args": parse_arguments(pairs), "name": f"{name} {pairs.replace(',', ', ')}"}


def _data(text: str, root: Path | None) -> dict[str, Any]:
    """Read ``NAME`` or ``NAME/CATEGORY``."""
    name, _, category = text.partition("/")
    arguments = {} if root is None or name == "SyntheticTextures" else {"root": str(root)}
    return {"class_path": name, "init_args": arguments, "categories": [category] if category else None}


def _folder(folder: Path) -> dict[str, Any]:
    """Make a data set, or one with categories, of a folder of images whose masks, if any, are complete."""
    if not folder.is_dir():
        msg = f"There is no folder {folder}: check the path."
        raise ConfigurationError(msg)
    one = (folder / _GOOD).is_dir()
    parts = [folder] if one else [path for path in folder.glob("[!.]*") if (path / _GOOD).is_dir()]
    if not parts:
        msg = f"{folder} has no folder '{_GOOD}', nor have its subfolders: put good images into {folder / _GOOD}."
        raise ConfigurationError(msg)
    for part in parts:
        if (part / _BAD).is_dir() and (part / _MASK).is_dir():
            from anomalib_mixedteacher.benchmark.masks import check_masks  # imports torchvision

            check_masks(part / _BAD, part / _MASK)
    places = {"normal_dir": _GOOD, "abnormal_dir": _BAD, "mask_dir": _MASK}
    there = {name: place for name, place in places.items() if any((part / place).is_dir() for part in parts)}
    return {
        "class_path": "Folder",
        "init_args": {"root": str(folder), **there},
        "categories": None if one else ALL,
        "name": folder.resolve().name,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mixedteacher benchmark", description=__doc__, epilog=_EPILOG)
    parser.add_argument("plan", nargs="?", type=Path, help="YAML file of a benchmark")
    parser.add_argument("--models", nargs="+", metavar="MODEL[:key=value,...]", help=f"default: {_DEFAULT_MODELS}")
    parser.add_argument("--data", nargs="+", metavar="NAME[/CATEGORY]", help="data sets")
    parser.add_argument("--root", type=Path, help="folder of the data set, where it takes one; goes before a file's")
    parser.add_argument("--folder", type=Path, help="folder of your own images")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0")
    parser.add_argument("--teacher-weights", metavar="SOURCE", help="default: imagenet")
    parser.add_argument("--image-size", type=int, help="side in pixels, default: 256")
    parser.add_argument("--epochs", type=int, help="for models that are trained in epochs, default: 100")
    parser.add_argument("--alarm-rate", type=float, help="budget of false alarms, default: 0.05")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on an accelerator or on cores")
    parser.add_argument("--output", type=Path, required=True, help="folder of results; finished parts are kept")
    return parser
