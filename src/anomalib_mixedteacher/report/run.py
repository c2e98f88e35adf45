"""A benchmark's run folder, read once, and the figures that the report shows of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scipy.stats import binomtest

from anomalib_mixedteacher.benchmark.result import GOOD, Cell, Failure, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder, Speed
from anomalib_mixedteacher.benchmark.tables import COLUMNS, Average, averaged, by_model, group
from anomalib_mixedteacher.errors import DataError, MixedTeacherError

RANKING = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC"}
"""The figures that models are ranked by, the first one that any model has."""


@dataclass(frozen=True)
class Alarms:
    """Alarms at the calibrated threshold, all seeds together; one image or more."""

    alarms: int
    images: int
    seeds: int = 1

    @property
    def share(self) -> float:
        """Share of the images that are alarms."""
        return self.alarms / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, for the images of one seed: seeds mostly test the same images."""
        alarms, images = round(self.alarms / self.seeds), round(self.images / self.seeds)
        low, high = binomtest(alarms, images).proportion_ci(method="wilson")
        return float(low), float(high)


@dataclass(frozen=True)
class Table:
    """Means and spreads over seeds.

    Attributes:
        title: The data set, or what it is the mean over.
        rows: By model and key of a column, as :func:`~anomalib_mixedteacher.benchmark.tables.average` gives them.
        reasons: Sentences on what is missing.
    """

    title: str
    rows: dict[str, dict[str, Average]]
    reasons: list[str]


@dataclass(frozen=True)
class Run:
    """What a run folder holds, without the predictions.

    Attributes:
        folder: The folder.
        plan: Text of ``benchmark.yaml``.
        results: One result for each model, data set and seed that finished, in the benchmark's order.
        failures: The cells that failed.
        waiting: The cells that have neither finished nor failed yet.
        groups: The results of each table by its title, means over several data sets first.
        speed: Latencies by name of cell.
    """

    folder: RunFolder
    plan: str
    results: Sequence[Result]
    failures: Sequence[Failure]
    waiting: Sequence[Cell]
    groups: dict[str, list[Result]]
    speed: Speed

    @property
    def cells(self) -> list[Cell]:
        """The finished cells, then the failed ones, then the waiting ones."""
        finished = [result.cell for result in self.results]
        return [*finished, *(failure.cell for failure in self.failures), *self.waiting]

    @property
    def data_sets(self) -> list[str]:
        """Names of all data sets, also where no cell has finished."""
        return list(dict.fromkeys(cell.data for cell in self.cells))

    @cached_property
    def models(self) -> list[str]:
        """Names of all models, the best first; those without a rank come last."""
        names = list(dict.fromkeys(cell.model for cell in self.cells))
        rows = by_model(next(iter(self.groups.values()), []), self.speed)
        key = next((key for key in RANKING if any(key in row for row in rows.values())), "")
        return sorted(names, key=lambda name: -rows.get(name, {}).get(key, (-1.0, None))[0])

    @cached_property
    def tables(self) -> list[Table]:
        """The means over several data sets, then one table for each data set."""
        tables = []
        for title, cells in self.groups.items():
            found = by_model(cells, self.speed)
            rows = {model: found.get(model, {}) for model in self.models}
            tables.append(Table(title, rows, self._reasons(rows, sorted({result.cell.data for result in cells}))))
        return tables

    def of(self, model: str, data: str) -> list[Result]:
        """Give the results of a model on a data set, by ascending seed."""
        found = [result for result in self.results if (result.cell.model, result.cell.data) == (model, data)]
        return sorted(found, key=lambda result: result.cell.seed)

    def why(self, model: str, data: str, key: str) -> list[str]:
        """Say in sentences why a figure of a model on a data set is missing."""
        sentences = [result.missing[key] for result in self.of(model, data) if key in result.missing]
        for state, cells in (("failed", [failure.cell for failure in self.failures]), ("is to come", self.waiting)):
            seeds = [cell.seed for cell in cells if (cell.model, cell.data) == (model, data)]
            sentences += [f"The training on {data} with seed {seed} {state}." for seed in seeds]
        if key == "latency_ms" and not sentences:
            sentences.append("The speed of exports was not measured.")
        return list(dict.fromkeys(sentences))

    def alarms(self, model: str, data: Sequence[str], kinds: Sequence[str]) -> Alarms | None:
        """Count a model's alarms on images of some kinds; ``None`` if there are no such images."""
        results = [result for name in data for result in self.of(model, name)]
        counts = [result.alarms[kind] for result in results for kind in kinds if kind in result.alarms]
        images = sum(images for _, images in counts)
        seeds = len({result.cell.seed for result in results if result.alarms})
        return Alarms(sum(alarms for alarms, _ in counts), images, seeds) if images else None

    def kinds(self, data: Sequence[str]) -> list[str]:
        """Name the kinds of defects of some data sets."""
        results = [result for result in self.results if result.cell.data in data]
        return sorted({kind for result in results for kind in result.alarms} - {GOOD})

    def _reasons(self, rows: dict[str, dict[str, Average]], data: Sequence[str]) -> list[str]:
        """Say why figures are missing: each sentence once, behind the figures and the models that it is about."""
        about: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
        lacking = [(model, key) for model, row in rows.items() for key in COLUMNS if key not in row]
        for model, key in lacking:
            for sentence in (sentence for name in data for sentence in self.why(model, name, key)):
                models, titles = about.setdefault(sentence, ({}, {}))
                models[model] = titles[COLUMNS[key][0]] = None
        return [
            f"{'All models' if len(models) == len(rows) else ', '.join(models)}, "
            f"{'all figures' if len(titles) == len(COLUMNS) else ', '.join(titles)}: {sentence}"
            for sentence, (models, titles) in about.items()
        ]


def read_run(path: Path) -> Run:
    """Read the folder that a benchmark wrote; the predictions stay on disk.

    Raises:
        ConfigurationError: If the folder is no benchmark's.
        DataError: If no cell has finished or failed yet, or a file is damaged.
    """
    folder = RunFolder(path)
    try:
        results, failures, waiting = folder.results(), folder.failures(), list(folder.unfinished().values())
        means = folder.index()["means"]
        plan, speed, groups = folder.plan.read_text("utf-8"), folder.known_speed(), averaged(results, means)
    except MixedTeacherError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"A file in {path} cannot be read ({error!r}): remove its cell's folder and run the benchmark again."
        raise DataError(msg) from error
    if not results and not failures:
        msg = f"Nothing has finished in {path} yet: wait for the benchmark's first training."
        raise DataError(msg)
    single = len(group(results, "group"))
    tables = [*groups.items()]
    return Run(folder, plan, results, failures, waiting, dict(tables[single:] + tables[:single]), speed)
