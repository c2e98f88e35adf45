"""``mixedteacher benchmark [PLAN.yaml] --output RUN``: models x data sets x seeds, trained, measured and kept.

A benchmark that was interrupted goes on where it stopped when the same command is given again.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt

from anomalib_mixedteacher.benchmark.plan import DataEntry, ModelEntry, Plan
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError

_INTERRUPTED = 130
_PACKAGED = {"layers": ["layer1", "layer2"]}  # of the packaged ResNet-18
_MODELS: list[str | dict[str, Any]] = [
    "MixedTeacher",
    {"class_path": "Stfpm", "init_args": _PACKAGED},
    {"class_path": "Patchcore", "init_args": _PACKAGED | {"coreset_sampling_ratio": 0.01}},  # 0.1 takes hours on a CPU
]
_ENTRIES = str | list[str | dict[str, Any]]

Entry = TypeVar("Entry", ModelEntry, DataEntry)


@dataclass(frozen=True)
class Options:
    """How it is run.

    Args:
        output: Folder of results; what is finished there is not run again.
        workers: Processes that train at the same time, on this machine.
        threads: Threads of each; by default the processor's cores shared out.
        scheduler: Address of a dask scheduler whose workers train instead, such as tcp://HOST:8786.
        keep_maps: Keep anomaly maps of the first seed, of 128 pixels a side at most, for the report's images.
    """

    output: Path
    workers: PositiveInt = 1
    threads: PositiveInt | None = None
    scheduler: str | None = None
    keep_maps: bool = True


def main(arguments: Sequence[str]) -> int:
    """Run ``mixedteacher benchmark``, behind whose name the arguments stand; see :func:`parse` and :func:`run`."""
    return run(*parse(arguments))


def run(plan: Plan, options: Options) -> int:
    """Run a benchmark, or what is left of it, and print its tables.

    Returns:
        Exit status: 0, or 1 if a training failed, or 130 after an interruption.

    Raises:
        ConfigurationError: If there is no such model or data set, or it does not take its arguments.
        DataError: If a folder holds no images in one of the usual layouts.
    """
    cells = plan.cells()
    # torch and anomalib, which a wrong plan need not wait for
    from anomalib_mixedteacher.benchmark.models import build_data, check_model
    from anomalib_mixedteacher.benchmark.runner import run_cells
    from anomalib_mixedteacher.benchmark.tables import write_tables

    for cell in {cell.model: cell for cell in cells}.values():  # known before hours of training
        check_model(cell)
    for cell in {cell.data: cell for cell in cells}.values():
        build_data(cell)
    folder = RunFolder(options.output)
    folder.write(folder.plan, plan.to_yaml())
    folder.set_cells(cells, plan.means)
    try:
        run_cells(folder, cells, options)
    except KeyboardInterrupt:
        print("mixedteacher: interrupted; give the same command again to go on.", file=sys.stderr)
        return _INTERRUPTED
    print(f"\n{write_tables(folder)}")
    print(f"results  {folder.path}: table.md, table.csv; 'mixedteacher report {folder.path}' shows them")
    return 1 if folder.failures() else 0


def parse(arguments: Sequence[str]) -> tuple[Plan, Options]:
    """Read a plan from a file, named first or by ``--config``, and from the command line, whose values go first.

    Raises:
        ConfigurationError: If there is a value that a benchmark cannot have.
    """
    parser = ArgumentParser(prog="mixedteacher benchmark", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of a plan; may also stand first, by itself")
    parser.add_argument("--models", type=_ENTRIES, default=_MODELS, help="a name, or a list of names and entries")
    parser.add_argument("--data", type=_ENTRIES, required=True, help="a folder or name, or a list of them and entries")
    parser.add_class_arguments(Plan, skip={"models", "data"})
    parser.add_class_arguments(Options)
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given.insert(0, "--config")
    try:
        values = parser.parse_args(given).as_dict()
    except ArgumentError as error:
        raise ConfigurationError(_sentence(error, "The benchmark", [*fields(Plan), *fields(Options)])) from error
    options = Options(**{item.name: values[item.name] for item in fields(Options)})
    settings = {item.name: values[item.name] for item in fields(Plan)}
    return Plan(**settings | {"models": _entries(ModelEntry, settings), "data": _entries(DataEntry, settings)}), options


def _entries(kind: type[Entry], settings: dict[str, Any]) -> list[Entry]:
    """Parse the entries of models or data; a name stands for an entry that has nothing else."""
    what = "models" if kind is ModelEntry else "data"
    listed = [settings[what]] if isinstance(settings[what], str) else settings[what]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    entries = []
    for entry in listed:
        values = _named(kind, entry, settings["root"]) if isinstance(entry, str) else entry
        where = f"{what}, {values.get('label') or values.get('class_path') or entry}"
        try:
            entries.append(kind(**parser.parse_object(values).as_dict()))
        except ArgumentError as error:
            raise ConfigurationError(_sentence(error, where, fields(kind))) from error
    return entries


def _named(kind: type, name: str, root: str) -> dict[str, Any]:
    is_folder = kind is DataEntry and ("/" in name or (Path(root) / name).is_dir())
    return {"class_path": "Folder", "init_args": {"root": name}} if is_folder else {"class_path": name}


def _sentence(error: ArgumentError, where: str, known: Sequence[Any]) -> str:
    """Make one sentence of jsonargparse's message."""
    text = " ".join(str(error).split())
    types = {i.name: re.sub(r"\w+\.", "", str(i.type) if get_args(i.type) else i.type.__name__) for i in known}
    if match := re.match(r'Parser key "(\w+)"[^:]*: (?:.*(?:Got|Given) value: )?(.+)', text):
        return f"{where}: {match[1]} takes {types.get(match[1], 'another value')}, not this: {match[2].rstrip('.')}."
    if match := re.match(r"Option '([\w.]+)' is not accepted", text):
        return f"{where} has no {match[1]}: it takes {', '.join(types)}."
    if match := re.match(r"Option '(\w+)' is required", text):
        return f"{where} needs {match[1]}: give it."
    return f"{where}: {text.rstrip('.')}."
