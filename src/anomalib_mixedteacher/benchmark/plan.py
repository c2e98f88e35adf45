"""What a benchmark compares: models, data sets with categories, and seeds, from YAML or from the command line.

.. code-block:: yaml

    models:
      - MixedTeacher
      - class_path: Patchcore
        init_args: {coreset_sampling_ratio: 0.1}
        name: Patchcore 10 %      # optional, as are epochs, batch and image_size, which go before those below
    data:
      - class_path: SyntheticTextures
        categories: [weave, grain]
      - class_path: Folder        # categories of a Folder are subfolders of its root; "all" takes every one
        init_args: {root: parts, normal_dir: good, abnormal_dir: bad}   # a category may lack defects, masks
        categories: all
        name: parts
    seeds: [0, 1, 2]
    teacher_weights: imagenet
    image_size: 256
    epochs: 100
    alarm_rate: 0.05
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.plugin import MODELS
from mixedteacher_edge.conformal import check_alarm_rate

# anomalib's example configurations: batch 32 for most models; EfficientAd takes single images
_BATCH = {**dict.fromkeys(MODELS, 8), "EfficientAd": 1}
_OTHER_BATCH = 32
_ONE_PASS = ("Patchcore", "Padim", "Dfm", "Dfkde", "WinClip")
ALL = "all"
_LARGEST_SEED = 2**32 - 1  # Lightning takes 0 in the place of a seed that numpy cannot have


@dataclass(frozen=True)
class ModelEntry:
    """A model of a benchmark; what is ``None`` is taken from the plan or is the model's usual value."""

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    epochs: int | None = None
    batch: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        for what in ("epochs", "batch", "image_size"):
            if getattr(self, what) is not None:
                _check_count(f"{self.label}: {what}", getattr(self, what))

    @property
    def label(self) -> str:
        """Name for tables."""
        return self.name or _short(self.class_path)


@dataclass(frozen=True)
class DataEntry:
    """A data set of a benchmark, with the categories to take of it."""

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    categories: list[str] | str | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        """Name for tables, without a category."""
        return self.name or str(self.init_args.get("name") or _short(self.class_path))

    @property
    def is_folder(self) -> bool:
        """Whether its categories are subfolders rather than an argument."""
        return _short(self.class_path) == "Folder"

    def sets(self) -> list[tuple[str, dict[str, Any]]]:
        """Give label and arguments of the datamodule of each category.

        Raises:
            ConfigurationError: If ``all`` categories cannot be listed.
        """
        if self.categories is None:
            return [(self.label, {"name": self.label, **self.init_args} if self.is_folder else self.init_args)]
        return [(f"{self.label}/{category}", self._arguments(category)) for category in self._listed()]

    def _arguments(self, category: str) -> dict[str, Any]:
        if not self.is_folder:
            return {**self.init_args, "category": category}
        root, arguments = Path(self.init_args.get("root", ".")) / category, dict(self.init_args)
        if self.categories == ALL:
            for name, folders in image_folders(arguments).items():
                if not any((root / folder).is_dir() for folder in folders):
                    del arguments[name]
        return {**arguments, "root": str(root), "name": category}

    def _listed(self) -> list[str]:
        if isinstance(self.categories, list) and self.categories:
            return [str(category) for category in self.categories]
        root, good = Path(self.init_args.get("root", ".")), self.init_args.get("normal_dir", "good")
        found = (
            sorted(path.name for path in root.glob("[!.]*") if (path / str(good)).is_dir()) if self.is_folder else []
        )
        if self.categories != ALL or not found:
            msg = (
                f"categories of {self.label}: give a list of one or more, or '{ALL}' for the subfolders of a Folder's "
                f"root that hold good images ({root}/*/{good})."
            )
            raise ConfigurationError(msg)
        return found


@dataclass(frozen=True)
class Plan:
    """A benchmark.

    Attributes:
        models: What to train.
        data: What to train it on.
        seeds: Seeds of split, weights and batches.
        teacher_weights: Where the teachers' weights come from.
        image_size: Side to which models resize images, in pixels.
        epochs: Passes over the training images, for models that are trained in epochs.
        alarm_rate: Budget of false alarms for the calibrated thresholds.
    """

    models: list[ModelEntry]
    data: list[DataEntry]
    seeds: list[int] = field(default_factory=lambda: [0])
    teacher_weights: str = "imagenet"
    image_size: int = 256
    epochs: int = 100
    alarm_rate: float = 0.05

    def __post_init__(self) -> None:
        check_alarm_rate(self.alarm_rate)
        for what, entries in {"models": self.models, "data": self.data, "seeds": self.seeds}.items():
            if not entries:
                msg = f"The benchmark has no {what}: give at least one."
                raise ConfigurationError(msg)
        for seed in self.seeds:
            if not _is_whole(seed) or not 0 <= seed <= _LARGEST_SEED:
                msg = f"The seeds hold {seed!r}: give whole numbers from 0 to {_LARGEST_SEED}."
                raise ConfigurationError(msg)
        if not isinstance(self.teacher_weights, str):
            msg = f"teacher_weights is {self.teacher_weights!r}: name a source, such as imagenet, random or a folder."
            raise ConfigurationError(msg)
        if double := _double([model.label for model in self.models]):
            msg = f"Several models are called {double}: give each a name of its own ('name')."
            raise ConfigurationError(msg)
        if double := _double([str(seed) for seed in self.seeds]):
            msg = f"The seeds name {double} more than once: give each seed once."
            raise ConfigurationError(msg)
        for what in ("image_size", "epochs"):
            _check_count(what, getattr(self, what))

    def cells(self) -> list[Cell]:
        """List what is to be trained, all models of one data set and seed after another.

        Raises:
            ConfigurationError: If ``all`` categories cannot be listed, or two data sets have the same name.
        """
        sets = [(entry.class_path, *one) for entry in self.data for one in entry.sets()]
        if double := _double([data for _, data, _ in sets]):
            msg = (
                f"Several data sets are called {double}: give each a name of its own ('name'), and each category once."
            )
            raise ConfigurationError(msg)
        return [
            self._cell(model, data, class_path, arguments, seed)
            for seed in self.seeds
            for class_path, data, arguments in sets
            for model in self.models
        ]

    def _cell(self, model: ModelEntry, data: str, data_class: str, data_args: Mapping[str, Any], seed: int) -> Cell:
        kind = _short(model.class_path)
        return Cell(
            model=model.label,
            class_path=model.class_path,
            init_args=model.init_args,
            data=data,
            data_class=data_class,
            data_args=dict(data_args),
            seed=seed,
            teacher_weights=self.teacher_weights,
            image_size=self.image_size if model.image_size is None else model.image_size,
            epochs=(1 if kind in _ONE_PASS else self.epochs) if model.epochs is None else model.epochs,
            batch=usual_batch(kind) if model.batch is None else model.batch,
            alarm_rate=self.alarm_rate,
        )

    def to_yaml(self) -> str:
        """Write with every default; :func:`parse_plan` reads it."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


def read_plan(path: Path) -> Plan:
    """Read a benchmark's file.

    Args:
        path: A YAML file as at the top of this module.

    Raises:
        ConfigurationError: If it cannot be read, or holds what a benchmark has not.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"Cannot read {path} ({error.strerror}): give the YAML file of a benchmark."
        raise ConfigurationError(msg) from error
    except yaml.YAMLError as error:
        msg = f"{path} is no YAML file: {' '.join(str(error).split())}."
        raise ConfigurationError(msg) from error
    return parse_plan(values, str(path))


def parse_plan(values: Any, where: str) -> Plan:
    """Make a plan of plain values.

    Args:
        values: What the YAML file holds.
        where: Its name, for messages.

    Raises:
        ConfigurationError: If it holds what a benchmark has not.
    """
    values = _checked(values, Plan, where)
    for name, kind in {"models": ModelEntry, "data": DataEntry}.items():
        values[name] = [_entry(entry, kind, f"{where}, {name}") for entry in _listed(values.get(name), name, where)]
    if "seeds" in values:
        values["seeds"] = list(_listed(values["seeds"], "seeds", where))
    if "alarm_rate" in values:
        values["alarm_rate"] = _share(values["alarm_rate"], "alarm_rate")
    return Plan(**values)


def _entry(entry: Any, kind: type, where: str) -> Any:
    if isinstance(entry, str):
        return kind(entry)
    checked = _checked(entry, kind, where)
    if "class_path" not in checked:
        msg = f"{where}: an entry has no class_path: name the class."
        raise ConfigurationError(msg)
    name = checked["class_path"]
    if not isinstance(name, str):
        msg = f"{where}: class_path is {name!r}: name the class."
        raise ConfigurationError(msg)
    arguments = checked.get("init_args")
    if not isinstance(arguments, dict | None):
        msg = f"{where}, {name}: init_args is {arguments!r}: give keys and values, or leave it out."
        raise ConfigurationError(msg)
    return kind(**checked | {"init_args": arguments or {}})  # YAML has None where nothing stands behind the colon


def _share(value: Any, what: str) -> float:
    try:
        if isinstance(value, int | float | str):
            return float(value) if isinstance(value, str) else value  # PyYAML takes 5e-2 for text
    except ValueError:
        pass
    msg = f"{what} is {value!r}: give a share above 0 and below 1, such as 0.05."
    raise ConfigurationError(msg)


def _check_count(what: str, value: Any) -> None:
    if not _is_whole(value) or value < 1:
        msg = f"{what} is {value!r}: give a whole number from 1 on."
        raise ConfigurationError(msg)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(entries: Any, name: str, where: str) -> Sequence[Any]:
    if not isinstance(entries, list):
        msg = f"{where} needs {name} as a list."
        raise ConfigurationError(msg)
    return entries


def _checked(values: Any, kind: type, where: str) -> dict[str, Any]:
    known = [item.name for item in fields(kind)]
    if not isinstance(values, dict):
        msg = f"{where} is not made of keys and values: it takes {', '.join(known)}."
        raise ConfigurationError(msg)
    if unknown := [str(key) for key in values if key not in known]:
        msg = f"{where} has no {', '.join(unknown)}: it takes {', '.join(known)}."
        raise ConfigurationError(msg)
    return dict(values)


def image_folders(arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """Give the folders of images that a datamodule's arguments name, by argument."""
    named = {name: value for name, value in arguments.items() if name.endswith("_dir") and value}
    return {name: [str(v) for v in (value if isinstance(value, list) else [value])] for name, value in named.items()}


def _double(names: Sequence[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def usual_batch(model: str) -> int:
    """Give the training batch of a model's published configuration, by the name of its class."""
    return _BATCH.get(model, _OTHER_BATCH)


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]
