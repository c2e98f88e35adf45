"""How models are told apart: by colour, by dashes and by markers, so that colour alone never has to."""

import math
from dataclasses import dataclass

from markupsafe import Markup

# Okabe and Ito's colours, without the yellow, which is too faint on white
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#333333")
_DASHES = ("none", "7 3", "2 3", "10 3 2 3", "5 2 1 2 1 2")
_CORNERS = (0, 4, 3, 5, 6)  # 0 is a circle


@dataclass(frozen=True)
class Style:
    """How a model is drawn.

    Attributes:
        colour: Hexadecimal colour.
        dash: SVG's ``stroke-dasharray``.
        corners: Corners of its marker, 0 for a circle.
    """

    colour: str
    dash: str
    corners: int

    def marker(self, x: float, y: float, radius: float = 5.5) -> Markup:
        """Draw the marker around a point, in the units of the plot."""
        if not self.corners:
            return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" fill="{}"/>').format(x, y, radius, self.colour)
        turns = [2 * math.pi * (corner / self.corners - 0.25) for corner in range(self.corners)]
        radius *= 1.15  # a polygon looks smaller than its circle
        points = " ".join(f"{x + radius * math.cos(turn):.1f},{y + radius * math.sin(turn):.1f}" for turn in turns)
        return Markup('<polygon points="{}" fill="{}"/>').format(points, self.colour)


def styles(models: list[str]) -> dict[str, Style]:
    """Give each model a style; the first 35 differ in colour and dashes both."""
    return {
        model: Style(_COLOURS[i % len(_COLOURS)], _DASHES[i % len(_DASHES)], _CORNERS[i % len(_CORNERS)])
        for i, model in enumerate(models)
    }
