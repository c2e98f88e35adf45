"""What a benchmark compares: models, data sets and seeds; configs/benchmark and docs/benchmark.md have examples."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import NonNegativeInt, PositiveInt

from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from anomalib_mixedteacher.plugin import MODELS

# anomalib's example configurations: batch 32 for most models; EfficientAd takes single images
_BATCH = {**dict.fromkeys(MODELS, 8), "EfficientAd": 1}
_OTHER_BATCH = 32
_ONE_PASS = ("Patchcore", "Padim", "Dfm", "Dfkde", "WinClip")


@dataclass(frozen=True)
class ModelEntry:
    """A model of a benchmark; what is ``None`` is the plan's, or the model's usual value.

    Args:
        class_path: Class of one of anomalib's models or of this package's.
        init_args: Its arguments.
        label: Name for tables.
        maps: Arguments of the anomaly map by a name that is put behind the label; one training serves them all.
        max_epochs: Passes over the training images.
        batch: Images in a training batch.
        image_size: Size to which the model resizes images; goes before the data set's.
        teacher_weights: Where this model's teachers' weights come from.
    """

    class_path: str
    init_args: dict[str, Any] | None = None
    label: str | None = None
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_epochs: PositiveInt | None = None
    batch: PositiveInt | None = None
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    teacher_weights: str | None = None

    @property
    def name(self) -> str:
        """Name for tables."""
        return self.label or short(self.class_path)

    def judged(self) -> dict[str, dict[str, Any]]:
        """Give the arguments of each map by its name for tables."""
        return {f"{self.name}, {name}": args for name, args in self.maps.items()} or {self.name: {}}


@dataclass(frozen=True)
class DataEntry:
    """A data set of a benchmark.

    Args:
        class_path: Class of one of anomalib's datamodules or of this package's.
        init_args: Its arguments; a Folder's root alone is enough where the folder has one of the usual layouts.
        label: Name for tables.
        categories: Categories to take, subfolders of a Folder's root; their figures are pooled as a mean.
        image_size: Size to which models resize these images; goes before the plan's.
    """

    class_path: str
    init_args: dict[str, Any] | None = None
    label: str | None = None
    categories: list[str] | None = None
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None

    @property
    def name(self) -> str:
        """Name for tables, without a category."""
        arguments = self.init_args or {}
        of_folder = Path(str(arguments.get("root"))).name if short(self.class_path) == "Folder" else None
        return self.label or str(arguments.get("name") or of_folder or short(self.class_path))

    def sets(self, root: str) -> dict[str, dict[str, Any]]:
        """Give the arguments of the datamodule of each category, whose relative root starts at ``root``, by its name.

        Raises:
            DataError: If a folder is in none of the usual layouts.
        """
        arguments, categories = dict(self.init_args or {}), self.categories
        if "root" in arguments:
            arguments["root"] = str(Path(root) / str(arguments["root"]))
        sets: dict[str, dict[str, Any]] = {name: {"category": name} for name in categories or []} or {"": {}}
        if short(self.class_path) == "Folder":
            folder = Path(arguments.pop("root", root))
            own = {name: {"root": str(folder / name)} for name in categories or [""]}
            found = own if "normal_dir" in arguments else folder_sets(folder, categories)
            sets = {name: {"name": name or self.name} | args for name, args in found.items()}
        return {f"{self.name}/{name}" if name else self.name: args | arguments for name, args in sets.items()}


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        models: What to train.
        data: What to train it on.
        seeds: Seeds of split, weights and batches.
        root: Folder where the data sets' relative roots start.
        teacher_weights: Where the teachers' weights come from.
        image_size: Side, or height and width, to which models resize images, in pixels.
        max_epochs: Passes over the training images, for models that are trained in epochs.
        alarm_rate: Budget of false alarms for the calibrated thresholds.
        means: Labels of data sets to take the mean over, by the mean's name; by default one over all.
    """

    models: list[ModelEntry]
    data: list[DataEntry]
    seeds: list[NonNegativeInt] = field(default_factory=lambda: [0])
    root: str = "."
    teacher_weights: str = "packaged"
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 256
    max_epochs: PositiveInt = 50
    alarm_rate: float = 0.05
    means: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        models, data = [name for model in self.models for name in model.judged()], [entry.name for entry in self.data]
        for what, names in {"models": models, "data": data, "seeds": [str(seed) for seed in self.seeds]}.items():
            if not names:
                msg = f"The benchmark has no {what}: give at least one."
                raise ConfigurationError(msg)
            if double := sorted({name for name in names if names.count(name) > 1}):
                msg = f"The {what} name {', '.join(double)} more than once: give each once, and a label of its own."
                raise ConfigurationError(msg)
        if unknown := [label for members in self.means.values() for label in members if label not in data]:
            msg = f"means names {', '.join(unknown)}, but the data sets are called {', '.join(data)}: name these."
            raise ConfigurationError(msg)

    def cells(self) -> list[Cell]:
        """List what is to be judged, all models of one data set and seed after another; see :meth:`DataEntry.sets`."""
        sets = [(entry, *one) for entry in self.data for one in entry.sets(self.root).items()]
        return [
            Cell(
                model=label,
                class_path=model.class_path,
                init_args=model.init_args or {},
                data=name,
                data_class=entry.class_path,
                data_args=data_args,
                seed=seed,
                teacher_weights=model.teacher_weights or self.teacher_weights,
                image_size=model.image_size or entry.image_size or self.image_size,
                max_epochs=model.max_epochs or (1 if short(model.class_path) in _ONE_PASS else self.max_epochs),
                batch=model.batch or _BATCH.get(short(model.class_path), _OTHER_BATCH),
                alarm_rate=self.alarm_rate,
                map_args=map_args,
                group=entry.name,
            )
            for seed in self.seeds
            for entry, name, data_args in sets
            for model in self.models
            for label, map_args in model.judged().items()
        ]

    def to_yaml(self) -> str:
        """Write with every default; ``--config`` reads it."""
        values = json.loads(json.dumps(asdict(self), default=str))  # tuples become lists
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def short(class_path: str) -> str:
    """Give the name of a class without its package."""
    return class_path.rpartition(".")[2]


def folder_sets(root: Path, categories: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Find the data sets in a folder: itself or all subfolders that have one of the layouts, or some by their names.

    Returns:
        Arguments of Folder by category; the category of ``root`` itself is ``""``.

    Raises:
        DataError: If a folder is in none of the layouts, or has masks of some kinds of defect only.
    """
    if categories is None and (arguments := _arguments(root)):
        return {"": arguments}
    found = {name: _arguments(root / name) for name in categories or sorted(path.name for path in root.glob("[!.]*/"))}
    found = {name: arguments for name, arguments in found.items() if arguments or categories}
    if not found or not all(found.values()):
        place = next((root / name for name, arguments in found.items() if not arguments), root)
        msg = f"{place} has no good images where they are looked for: put them into good (and defects into bad, "
        msg += "masks into mask), or into train/good, test/KIND and ground_truth/KIND as MVTec AD has them."
        raise DataError(msg)
    return found


def _arguments(root: Path) -> dict[str, Any]:
    """Give Folder's arguments, empty where the layout is another one."""
    places: dict[str, Any] = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "mask"}
    if (root / "train" / "good").is_dir():
        kinds = sorted(path.name for path in root.glob("test/[!.]*/") if path.name != "good")
        masked = [kind for kind in kinds if (root / "ground_truth" / kind).is_dir()]
        if masked and (bare := [kind for kind in kinds if kind not in masked]):
            msg = f"{root / 'ground_truth'} has no masks of {bare[0]}: draw them, or take the other kinds' masks away."
            raise DataError(msg)
        places = {"normal_dir": "train/good", "normal_test_dir": "test/good"}
        lists = {"abnormal_dir": [f"test/{kind}" for kind in kinds], "mask_dir": [f"ground_truth/{k}" for k in masked]}
    elif (root / "good").is_dir():
        lists = {}
    else:
        return {}
    there = {name: place for name, place in places.items() if (root / place).is_dir()}
    return {"root": str(root), **there, **{name: folders for name, folders in lists.items() if folders}}
