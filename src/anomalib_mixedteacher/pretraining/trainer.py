"""Pre-training of both teachers on generated textures.

Step ``k`` of a run sees the same images whatever happened before: they are drawn from the seed and ``k`` alone. A run
that was interrupted therefore goes on as if nothing had been, and on the CPU ends in the same weights.
"""

import io
import json
import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.feature_extractor import FeatureExtractor, initialize_weights
from anomalib_mixedteacher.components.normalization import IMAGENET_MEAN, IMAGENET_STD
from anomalib_mixedteacher.components.texture_weights import write_whole
from anomalib_mixedteacher.errors import CheckpointError, ConfigurationError
from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.objectives import build_objective
from anomalib_mixedteacher.pretraining.recipe import LAYERS, Recipe
from anomalib_mixedteacher.pretraining.scenes import Bank, Scenes, draw_scenes

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1  # raise it when the same seed gives other images
STATE, LOG = "state.pt", "log.jsonl"
MAX_GRADIENT = 5.0
_STREAMS = 1 << 32


class Pretrainer:
    """Trains the backbones of a recipe, all on the same images.

    Args:
        recipe: What to train.
        device: Where.
        about: What else is to be known of the weights; kept with the state, so that it tells of the run's beginning.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device | str = "cpu", about: Mapping[str, Any] | None = None
    ) -> None:
        self.recipe = recipe
        self.about = dict(about or {})
        self.device = torch.device(device)
        # Each from a seed of its own: a backbone ends in the same weights whether or not another trains beside it.
        self.branches = nn.ModuleDict({name: _seeded_branch(name, recipe) for name in recipe.backbones})
        self.branches.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        decayed = [p for p in self.branches.parameters() if p.ndim > 1]
        others = [p for p in self.branches.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        )
        self.step = 0
        self._bank: Bank | None = None
        self._bank_number = -1

    def learning_rate(self, step: int) -> float:
        """Warm up over a twentieth of the steps, then follow half a cosine to zero."""
        warm = max(self.recipe.steps // 20, 1)
        share = (
            (step + 1) / warm
            if step < warm
            else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (self.recipe.steps - warm))
        )
        return self.recipe.learning_rate * share

    def scenes(self, step: int) -> Scenes:
        """Draw the images of a step; the same at every call."""
        recipe = self.recipe
        number = step // recipe.refresh
        number = number % recipe.banks if recipe.banks else number
        if number != self._bank_number:
            draw = Draw(2 * _STREAMS * recipe.seed + _STREAMS + number, self.device)
            self._bank = Bank.draw(recipe.bank, recipe.canvas, draw, number * recipe.bank)
            self._bank_number = number
        assert self._bank is not None
        draw = Draw(2 * _STREAMS * recipe.seed + step, self.device)
        return draw_scenes(self._bank, recipe.batch, recipe.size, draw, recipe.light)

    def train_step(self) -> dict[str, torch.Tensor]:
        """Take one optimiser step.

        Returns:
            Loss of each backbone and objective, on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        with torch.no_grad():
            scenes = self.scenes(self.step)
            images = normalize(scenes.images).contiguous(memory_format=torch.channels_last)
        self.branches.train()
        report: dict[str, torch.Tensor] = {}
        for name, branch in self.branches.items():
            losses = branch(images, scenes, Draw(2 * _STREAMS * self.recipe.seed + self.step, self.device))
            total = torch.stack([self.recipe.objectives[key] * value for key, value in losses.items()]).sum()
            total.backward()
            nn.utils.clip_grad_norm_(branch.parameters(), MAX_GRADIENT)
            report |= {f"{name}/{key}": value.detach() for key, value in losses.items()}
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return report

    def weights(self, backbone: str) -> dict[str, torch.Tensor]:
        """Weights of a backbone in timm's naming, on the CPU."""
        state = self.branches[backbone].extractor.net.state_dict()  # type: ignore[union-attr]
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def save(self, path: Path) -> None:
        """Save everything that :meth:`restore` needs, as a whole or not at all.

        Raises:
            ConfigurationError: If a weight is not finite.
            CheckpointError: If the state cannot be written.
        """
        for key, value in self.branches.state_dict().items():
            if not value.isfinite().all():
                raise self._astray(f"{key} is not finite")
        state = {
            "recipe": self.recipe.as_json(),
            "generator": GENERATOR_VERSION,
            "about": self.about,
            "step": self.step,
            "branches": self.branches.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        content = io.BytesIO()  # torch's own writer turns a full disk into an error without a reason
        torch.save(state, content)
        try:
            write_whole(path, content.getbuffer())
        except OSError as error:
            msg = (
                f"The state cannot be written to {path} ({error.strerror or error}): make room there, and give the "
                "same arguments again to go on."
            )
            raise CheckpointError(msg) from error

    def _astray(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"Training went astray, {what} at step {self.step}: start anew with a lower learning_rate, in another "
            "output folder."
        )

    def restore(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ConfigurationError: If the state is of another recipe or generator, or damaged.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            generator, recipe = state.get("generator", GENERATOR_VERSION), state["recipe"]
            if (generator, recipe) == (GENERATOR_VERSION, self.recipe.as_json()):
                self.branches.load_state_dict(state["branches"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step = int(state["step"])
                self.about = dict(state.get("about", self.about))
        except (RuntimeError, EOFError, UnpicklingError, LookupError, AttributeError, TypeError, ValueError) as error:
            msg = f"The state {path} is damaged ({type(error).__name__}): remove it to start anew."
            raise ConfigurationError(msg) from error
        if generator != GENERATOR_VERSION:
            msg = f"{path} was begun with another version of the generator: give another output folder."
            raise ConfigurationError(msg)
        if recipe != self.recipe.as_json():
            msg = f"{path} is of another recipe: give the same arguments as before, or another output folder."
            raise ConfigurationError(msg)

    def fit(self, folder: Path, save_every: float = 300.0, log_every: int = 50) -> None:
        """Train to the last step, from the state in the folder if there is one.

        Args:
            folder: Receives the state and a log, ``log.jsonl``.
            save_every: Seconds between two states.
            log_every: Steps between two lines of the log.

        Raises:
            ConfigurationError: If the loss or a weight is no longer finite, or the state there is not this run's.
            CheckpointError: If the state cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / STATE
        for left in folder.glob(f".{STATE}.*.tmp"):  # by a process that was killed while it saved
            left.unlink(missing_ok=True)
        if path.exists():
            self.restore(path)
            logger.info("Going on from step %d", self.step)
        reports: list[dict[str, torch.Tensor]] = []
        saved = logged = time.monotonic()
        while self.step < self.recipe.steps:
            reports.append(self.train_step())
            if self.step % log_every == 0 or self.step == self.recipe.steps:
                line: dict[str, float] = {"step": self.step}
                losses = {key: sum(r[key].item() for r in reports) / len(reports) for key in reports[0]}
                for key, loss in losses.items():
                    if not math.isfinite(loss):
                        raise self._astray(f"the loss {key} is {loss}")
                line |= {key: round(loss, 4) for key, loss in losses.items()}
                line["images_per_second"] = round(len(reports) * self.recipe.batch / (time.monotonic() - logged), 1)
                with (folder / LOG).open("a") as log:
                    log.write(json.dumps(line) + "\n")
                logger.info("%s", line)
                reports, logged = [], time.monotonic()
            if time.monotonic() - saved > save_every:
                self.save(path)
                saved = time.monotonic()
        self.save(path)


class _Branch(nn.Module):
    """A backbone and its objectives."""

    def __init__(self, backbone: str, recipe: Recipe) -> None:
        super().__init__()
        self.extractor = FeatureExtractor(backbone, LAYERS[backbone])
        self.objectives = nn.ModuleDict(
            {name: build_objective(name, self.extractor.channels, recipe.textures) for name in recipe.objectives}
        )

    def forward(self, images: torch.Tensor, scenes: Scenes, draw: Draw) -> dict[str, torch.Tensor]:
        with self._autocast(images.device.type):
            features = self.extractor(images)
        features = [feature.float() for feature in features]
        if self.extractor.backbone == "resnet18":
            # pooled as MixedTeacher compares them
            features = [F.avg_pool2d(feature, kernel_size=2, ceil_mode=True) for feature in features]
        return {name: objective(features, scenes, draw) for name, objective in self.objectives.items()}

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        # bfloat16 is faster on every GPU; on a CPU that has it, for full convolutions and not for depth-wise ones.
        # (2026-11-21, 64 px, forward and backward, against float32: ResNet part 1.5 times as fast, EfficientNet half.)
        if device == "cpu" and (self.extractor.backbone != "resnet18" or not _cpu_has_bfloat16()):
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; without it a step takes ten times as long as in float32."""
    return any(present for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Normalise colours in ``[0, 1]`` as the models' pre-processors do."""
    mean, std = (torch.tensor(v, device=images.device)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def _seeded_branch(name: str, recipe: Recipe) -> _Branch:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2 * recipe.seed + list(LAYERS).index(name))
        branch = _Branch(name, recipe)
        initialize_weights(branch.extractor)
    return branch
