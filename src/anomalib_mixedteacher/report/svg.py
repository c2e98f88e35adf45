"""A plot's frame in SVG: scales, axes, ticks and labels. Whatever comes from outside is escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Plane:
    """Maps values to positions in a plot.

    Attributes:
        x: Values at the left and the right end.
        y: Values at the lower and the upper end.
        width: Width of the whole plot in its own units.
        height: Height.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Give the position of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        return _LEFT + across * (right - _LEFT), bottom - up * (bottom - _TOP)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Write a line as an SVG path, to half a unit, without points that change nothing at that precision."""
        rounded: list[tuple[float, float]] = []
        for x, y in points:
            across, down = self.at(x, y)
            point = round(2 * across) / 2, round(2 * down) / 2
            if len(rounded) > 1 and _in_line(rounded[-2], rounded[-1], point):
                rounded.pop()
            if not rounded or rounded[-1] != point:
                rounded.append(point)
        return "M" + " ".join(f"{x:g},{y:g}" for x, y in rounded)

    def frame(
        self,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> Markup:
        """Draw grid, ticks and labels.

        Args:
            x_label: What is on the horizontal axis, with its unit.
            y_label: The same of the vertical one.
            x_ticks: Values with their texts; round ones by default.
            y_ticks: The same of the vertical axis.
        """
        parts = []
        left, bottom = self.at(self.x[0], self.y[0])
        right, top = self.at(self.x[1], self.y[1])
        for value, text in x_ticks if x_ticks is not None else ticks(*self.x):
            x, _ = self.at(value, 0)
            line = Markup('<path class="grid" d="M{0:.1f},{1:.1f} V{2:.1f}"/>').format(x, bottom, top)
            parts.append(
                line + Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x, bottom + 15, text)
            )
        for value, text in y_ticks if y_ticks is not None else ticks(*self.y):
            _, y = self.at(0, value)
            line = Markup('<path class="grid" d="M{0:.1f},{1:.1f} H{2:.1f}"/>').format(left, y, right)
            parts.append(
                line + Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(left - 6, y + 4, text)
            )
        axes = Markup('<path class="axis" d="M{0:.1f},{1:.1f} V{2:.1f} H{3:.1f}"/>').format(left, top, bottom, right)
        centre, middle = (left + right) / 2, (top + bottom) / 2
        label = Markup('<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>')
        turned = Markup('<text class="label" x="{:.1f}" y="11" transform="rotate(-90)" text-anchor="middle">{}</text>')
        labels = label.format(centre, self.height - 6, x_label) + turned.format(-middle, y_label)
        return Markup("").join([*parts, axes, labels])

    def svg(self, title: str, *parts: Markup) -> Markup:
        """Put parts into a plot whose title is read aloud instead of it."""
        head = Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">')
        return head.format(self.width, self.height, title) + Markup("").join(parts) + Markup("</svg>")


def ticks(low: float, high: float, number: int = 5) -> list[tuple[float, str]]:
    """Choose about so many round values between two limits, with their texts."""
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step * 1.001)))
    first = math.ceil(low / step - 1e-6)
    last = math.floor(high / step + 1e-6)
    return [(index * step, f"{index * step:.{digits}f}") for index in range(first, last + 1)]


def _in_line(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> bool:
    """Tell whether the second point lies on the horizontal or vertical line between the others."""
    return first[0] == second[0] == third[0] or first[1] == second[1] == third[1]
