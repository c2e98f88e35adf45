"""Everything that decides the weights of a pre-training run."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.pretraining.objectives import OBJECTIVES

LAYERS = {"resnet18": (1, 2), "efficientnet_b0": (3, 4)}  # what MixedTeacher uses, and so what is trained and shipped
_SEEDS = 1 << 31  # those that leave the generators' 64 bits room for a number of each step


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights of a run.

    Attributes:
        objectives: Weight of each objective by name.
        seed: Seed of weights and images, from 0 to 2147483647.
        steps: Optimiser steps.
        batch: Images a step.
        size: Side of an image in pixels.
        canvas: Side of a texture's canvas in pixels, at least twice that of an image.
        bank: Textures in memory at a time.
        banks: Number of banks; after the last the run comes back to the first. ``None`` makes new textures to the end.
        refresh: Steps before the next bank.
        light: Spread of exposure and shading over the images; 0 for none.
        learning_rate: Peak of the schedule.
        weight_decay: Of AdamW, on convolutions and heads.
        backbones: Backbones to train.

    Raises:
        ConfigurationError: If a number is out of range or a name unknown.
    """

    objectives: Mapping[str, float] = field(default_factory=lambda: {"defect_contrast": 1.0})
    seed: int = 0
    steps: int = 10_000
    batch: int = 128
    size: int = 64
    canvas: int = 160
    bank: int = 256
    banks: int | None = None
    refresh: int = 40
    light: float = 1.0
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    backbones: tuple[str, ...] = tuple(LAYERS)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "bank", "refresh", "banks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"{name} must be 1 or more, not {value}."
                raise ConfigurationError(msg)
        if not 0 <= self.seed < _SEEDS:
            msg = f"seed must be 0 or more and below {_SEEDS}, not {self.seed}."
            raise ConfigurationError(msg)
        for name in ("light", "weight_decay", "learning_rate"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name == "learning_rate"):
                least = "above 0" if name == "learning_rate" else "of 0 or more"
                msg = f"{name} must be a finite number {least}, not {value}."
                raise ConfigurationError(msg)
        if self.size < 32 or self.canvas < 2 * self.size:
            msg = f"size={self.size} must be 32 or more, and canvas={self.canvas} at least twice that."
            raise ConfigurationError(msg)
        for name, value in self.objectives.items():
            if name not in OBJECTIVES or not math.isfinite(value) or value <= 0:
                msg = f"{name}={value} is no objective; give positive weights to some of {', '.join(OBJECTIVES)}."
                raise ConfigurationError(msg)
        if not self.objectives or not self.backbones or not set(self.backbones) <= set(LAYERS):
            msg = f"Give one objective or more, and backbones from {', '.join(LAYERS)}."
            raise ConfigurationError(msg)

    @property
    def textures(self) -> int:
        """Number of different textures of the run."""
        drawn = -(-self.steps // self.refresh)
        return self.bank * min(self.banks or drawn, drawn)

    def as_json(self) -> dict[str, Any]:
        """Give the recipe as plain JSON types."""
        return dict(json.loads(json.dumps(asdict(self))))
