"""Published figures, as data: ``published.yaml`` beside this file says for each where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        model: Class of the model.
        arguments: Those of its arguments that the figure holds for.
        data: Class of the datamodule.
        category: Category of the data set, or one of :attr:`Published.means`.
        metric: Key of a column of :data:`~anomalib_mixedteacher.benchmark.tables.COLUMNS`.
        value: In ``[0, 1]``; images a second for ``images_per_second``.
        source: Who published it, and where.
        protocol: How it was measured, as far as is known.
        not_comparable: Why a measurement of this package cannot be held against it; ``None`` if it can.
    """

    model: str
    arguments: Mapping[str, Any]
    data: str
    category: str
    metric: str
    value: float
    source: str
    protocol: str
    not_comparable: str | None = None

    def holds_for(self, model: str, arguments: Mapping[str, Any]) -> bool:
        """Tell whether the figure is of such a model.

        Args:
            model: Class of a model, with or without its package.
            arguments: The arguments that it was given; one that is left out is not the figure's.
        """
        given = {key: arguments.get(key) for key in self.arguments}
        return self.model == model.rpartition(".")[2] and given == self.arguments


@dataclass(frozen=True)
class Published:
    """All published figures that are known.

    Attributes:
        figures: The figures.
        means: Categories of which a published mean is made, by its name.
        remarks: By data set, what must be known before a figure is held against another.
    """

    figures: Sequence[Figure]
    means: Mapping[str, Sequence[str]]
    remarks: Mapping[str, str]

    def find(self, model: str, arguments: Mapping[str, Any], data: str, category: str | None) -> list[Figure]:
        """Find the figures of a model on a category.

        Args:
            model: Class of the model, with or without its package.
            arguments: The arguments that it was given.
            data: Class of the datamodule, with or without its package.
            category: The category, or the name of a mean.
        """
        place = data.rpartition(".")[2], category
        return [
            figure
            for figure in self.figures
            if (figure.data, figure.category) == place and figure.holds_for(model, arguments)
        ]


@cache
def read_published() -> Published:
    """Read ``published.yaml``."""
    values = yaml.safe_load(files(__package__).joinpath("published.yaml").read_text(encoding="utf-8"))
    figures = [
        Figure(
            model=table["model"],
            arguments=table.get("arguments", {}),
            data=table["data"],
            category=category,
            metric=metric,
            value=value,
            source=table["source"],
            protocol=table["protocol"],
            not_comparable=table.get("not_comparable"),
        )
        for table in values["tables"]
        for metric, by_category in table["figures"].items()
        for category, value in by_category.items()
    ]
    return Published(figures, values["means"], values["remarks"])
