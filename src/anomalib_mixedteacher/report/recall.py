"""Alarms at the calibrated threshold by kind of defect."""

from dataclasses import dataclass

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.report.data import Run


@dataclass(frozen=True)
class Alarms:
    """Alarms of a model on the images of one kind, all seeds together; ``images`` is 0 where there are none."""

    alarms: int
    images: int

    @property
    def share(self) -> float:
        """Share of the images that are alarms."""
        return self.alarms / self.images if self.images else 0.0


@dataclass(frozen=True)
class RecallTable:
    """Alarms on one data set.

    Attributes:
        data: The data set.
        models: Names of the columns.
        defects: A row for each kind of defect, the one found least often over all models first.
        good: The row of false alarms, or ``None`` if there are no good test images.
        total: The row of all defects together, or ``None`` if there is at most one kind.
        missing: Sentences on the models without alarms.
    """

    data: str
    models: list[str]
    defects: dict[str, list[Alarms]]
    good: list[Alarms] | None
    total: list[Alarms] | None
    missing: list[str]


def recall_table(run: Run, data: str, models: list[str]) -> RecallTable:
    """Count a data set's alarms by kind and model, over all seeds."""
    counts: dict[str, dict[str, Alarms]] = {}
    missing = []
    for model in models:
        found: dict[str, tuple[int, int]] = {}
        for result in run.of(model, data):
            for kind, (alarms, images) in result.alarms.items():
                before = found.get(kind, (0, 0))
                found[kind] = before[0] + alarms, before[1] + images
        counts[model] = {kind: Alarms(*numbers) for kind, numbers in found.items()}
        if not any(numbers.images for numbers in counts[model].values()):
            reasons = [run.reason(result, "false_alarm_rate") for result in run.of(model, data)]
            reasons += [f"the training with seed {failure.cell.seed} failed." for failure in run.failed(model, data)]
            reasons += [sentence[0].lower() + sentence[1:] for sentence in run.awaited(model, data)]
            missing.append(f"{model}: {' '.join(dict.fromkeys(reasons)) or 'it was not trained on this data set.'}")
    present = [model for model in models if any(numbers.images for numbers in counts[model].values())]
    kinds = {kind for model in present for kind in counts[model]} - {GOOD}

    def row(*chosen: str) -> list[Alarms]:
        of_models = [[counts[model][kind] for kind in chosen if kind in counts[model]] for model in present]
        return [Alarms(sum(c.alarms for c in found), sum(c.images for c in found)) for found in of_models]

    rows = {kind: row(kind) for kind in kinds}
    hardest = sorted(rows, key=lambda kind: (sum(cell.share for cell in rows[kind]), kind))
    good = row(GOOD)
    return RecallTable(
        data,
        present,
        {kind: rows[kind] for kind in hardest},
        good if any(cell.images for cell in good) else None,
        row(*kinds) if len(kinds) > 1 else None,
        missing,
    )
