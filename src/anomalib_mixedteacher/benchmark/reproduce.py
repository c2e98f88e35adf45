"""Run a table of ``configs/paper``, and put the published figures beside the measured ones.

The data set and the teachers' weights are looked for before anything is trained. A table that was interrupted goes on
where it stopped when the same command is given again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalib_mixedteacher.benchmark import command
from anomalib_mixedteacher.benchmark.comparison import to_markdown
from anomalib_mixedteacher.benchmark.plan import DataEntry, ModelEntry, Plan, read_plan
from anomalib_mixedteacher.benchmark.published import read_published
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError, DataError, sentence

DRY_RUN = "DRY RUN on generated stand-ins: these figures mean nothing"
"""What every output of a dry run says."""

_TABLES = Path("configs", "paper")
_MEASURED = 1
"""The highest exit status of a benchmark that came to its end; an interruption's is higher."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Arguments without the program's name; ``sys.argv`` by default.

    Returns:
        Exit status: 0, or 1 if a training failed or something is missing, or 130 after an interruption.
    """
    settings = _parser().parse_args(arguments)
    try:
        plan = read_plan(find_table(settings.table))
        if settings.dry_run and settings.root:
            msg = "A dry run makes its own images: leave --root out, or leave --dry-run out."
            raise ConfigurationError(msg)
        return reproduce(plan, Path(settings.table).stem, settings.output, settings.root, settings.dry_run)
    except Exception as error:
        if (known := sentence(error)) is None:
            raise
        print(f"reproduce: {known}", file=sys.stderr)
        return 1


def reproduce(plan: Plan, title: str, output: Path, root: Path | None = None, dry_run: bool = False) -> int:
    """Check, train, measure and compare.

    Args:
        plan: The table.
        title: Its name, for the head of the outcome.
        output: Folder of the benchmark; gets ``published.md`` besides the benchmark's own files.
        root: Folder of the data set; by default that of the plan.
        dry_run: Train the least on generated stand-ins, and say so everywhere.

    Returns:
        Exit status, as of :func:`main`.

    Raises:
        DataError: If the data set is not there, or not whole.
        WeightsError: If the teachers' weights cannot be loaded.
        ConfigurationError: If the plan cannot be run.
    """
    if dry_run:
        print(DRY_RUN)
    folder = RunFolder(output)
    plan = make_dry(plan, output / "stand_ins") if dry_run else _with_root(plan, root)
    check_data(plan)
    check_weights(plan)
    status = command.run(plan, folder)
    if status > _MEASURED or not folder.results():
        return status
    speed: dict[str, dict[str, float]] = json.loads(folder.speed.read_text(encoding="utf-8"))
    compared = to_markdown(folder.results(), folder.failures(), speed, read_published())
    mark = f"**{DRY_RUN}**\n\n" if dry_run else ""
    text = f"# {title}: measured beside published\n\n{mark}{compared}"
    folder.write(output / "published.md", text)
    if dry_run:
        table = output / "table.md"
        folder.write(table, mark + table.read_text(encoding="utf-8"))
    print(f"\n{text}")
    print(f"compared {output / 'published.md'}{f' ({DRY_RUN})' if dry_run else ''}")
    return status


def find_table(name: str) -> Path:
    """Find a table's file.

    Args:
        name: Path of a benchmark's YAML file, or the name of one in ``configs/paper`` of this folder or of the checkout
            that the package was installed from.

    Raises:
        ConfigurationError: If there is none.
    """
    checkout = Path(__file__).resolve().parents[3]
    places = [Path(name), *(place / _TABLES / f"{name}.yaml" for place in (Path(), checkout))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        msg = (
            f"There is no table {name}: give the path of a YAML file of {_TABLES} in the sources, or run this in a "
            "checkout and give the name alone."
        )
        raise ConfigurationError(msg)
    return found


def check_data(plan: Plan) -> None:
    """Check that each data set is where the plan says, and whole: anomalib would fetch what is missing.

    Args:
        plan: The benchmark.

    Raises:
        DataError: If something is missing.
    """
    from anomalib_mixedteacher.benchmark.layouts import check_layout

    for entry in plan.data:
        for _, arguments in entry.sets():
            if "root" in arguments:
                check_layout(entry.class_path, Path(arguments["root"]), str(arguments.get("category", "")))


def check_weights(plan: Plan) -> None:
    """Check that every model of this package, and each peer that shares its teachers, can load its teachers' weights.

    Args:
        plan: The benchmark.

    Raises:
        WeightsError: If they cannot be found, read or matched.
        ConfigurationError: If a model does not take its arguments.
    """
    import torch

    from anomalib_mixedteacher.benchmark.build import build
    from anomalib_mixedteacher.benchmark.peers import PEERS, load_peer_teacher
    from anomalib_mixedteacher.components.distillation_module import DistillationModule

    for entry in plan.models:
        size = entry.image_size or plan.image_size
        model, _ = build(entry.class_path, plan.teacher_weights, size, **entry.init_args)
        if isinstance(model, DistillationModule):
            model.model.load_teachers(plan.teacher_weights)
        elif entry.class_path.rpartition(".")[2] in PEERS:
            load_peer_teacher(model, plan.teacher_weights, torch.rand(2, 3, size, size))


def make_dry(plan: Plan, folder: Path) -> Plan:
    """Make the least of a plan: stand-ins for its data, random teachers, small images, one epoch, its first seed.

    Args:
        plan: The benchmark.
        folder: Where to write the stand-ins.

    Returns:
        A plan with the same models, data sets and categories, whose data sets are called dry runs.

    Raises:
        ConfigurationError: If there are no stand-ins for a data set.
    """
    from anomalib_mixedteacher.benchmark.stand_ins import SIDE

    return replace(
        plan,
        models=[_small(entry) for entry in plan.models],
        data=[_stand_in(entry, folder) for entry in plan.data],
        seeds=plan.seeds[:1],
        teacher_weights="random",
        image_size=SIDE,
        epochs=1,
    )


def _small(entry: ModelEntry) -> ModelEntry:
    return replace(entry, name=entry.label, epochs=1, batch=4, image_size=None)


def _stand_in(entry: DataEntry, folder: Path) -> DataEntry:
    from anomalib_mixedteacher.benchmark.stand_ins import make_stand_ins

    place = folder / entry.class_path.rpartition(".")[2]
    categories = [arguments.get("category") for _, arguments in entry.sets()]
    make_stand_ins(entry.class_path, [str(category) for category in categories if category is not None], place)
    arguments: dict[str, Any] = {**entry.init_args, "root": str(place), "num_workers": 0}
    return replace(entry, init_args=arguments, name=f"DRY RUN {entry.label}")


def _with_root(plan: Plan, root: Path | None) -> Plan:
    if root is None:
        return plan
    if not root.is_dir():
        msg = f"There is no folder {root}: give the folder of the unpacked data set as --root."
        raise DataError(msg)
    return replace(plan, data=[replace(e, init_args={**e.init_args, "root": str(root)}) for e in plan.data])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reproduce", description=__doc__)
    parser.add_argument("table", help="name of a file in configs/paper, or the path of a benchmark's YAML file")
    parser.add_argument("--root", type=Path, help="folder of the data set, default: the one in the file")
    parser.add_argument("--output", type=Path, required=True, help="folder of results; finished parts are kept")
    parser.add_argument("--dry-run", action="store_true", help="run through on generated stand-ins, in minutes")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
